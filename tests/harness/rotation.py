"""The long tests that one run of CI takes: `make test-rotating` chooses groups of them by a seed that it prints.

A long test joins a group by `pytest.mark.rotating("group", seconds)`; tests of a group share what they start, and
`seconds` is what the whole group takes. SCALABLEVIT_ROTATION is the seed; SCALABLEVIT_ROTATION_S the time to fill.
"""

import os
import random

import pytest

SEED = "SCALABLEVIT_ROTATION"
BUDGET_S = float(os.environ.get("SCALABLEVIT_ROTATION_S", "180"))


def choose(groups: dict[str, float], seed: int, budget_s: float) -> list[str]:
    """Names of groups in random order, as many as the budget has room for; at least one.

    Args:
        groups: seconds by name.
        seed: decides the order.
        budget_s: seconds for all that are chosen.
    """
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    chosen, left = [order[0]], budget_s - groups[order[0]]
    for name in order[1:]:
        if groups[name] <= left:
            chosen.append(name)
            left -= groups[name]
    return chosen


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave only the chosen groups, when a seed is given."""
    if SEED not in os.environ:
        return
    by_item = {item: marker.args for item in items if (marker := item.get_closest_marker("rotating"))}
    chosen = choose(dict(by_item.values()), int(os.environ[SEED]), BUDGET_S)
    config.stash[CHOSEN] = chosen
    kept = [item for item in items if item in by_item and by_item[item][0] in chosen]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


CHOSEN = pytest.StashKey[list[str]]()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Say what was chosen, and how to choose the same again."""
    if CHOSEN not in config.stash:
        return []
    return [f"long tests of this run, by {SEED}={os.environ[SEED]}: {', '.join(config.stash[CHOSEN])}"]
