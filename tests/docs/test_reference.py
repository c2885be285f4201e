"""The pages of reference name every key, command, metric and name of the API, and say what each means."""

import re
from types import ModuleType

import pytest
from harness.pages import load_reference

import scalablevit
from scalablevit.cli.verbs import VERBS
from scalablevit.config.task_info import TASKS


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return load_reference()


def rows(page: str) -> list[list[str]]:
    """Cells of all rows of a page's tables."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("page", ["recipe_page", "space_page"])
def test_every_key_has_a_meaning(reference: ModuleType, page: str) -> None:
    found = rows(getattr(reference, page)())
    assert [key for key, _, _, meaning, _ in found if not meaning] == []
    assert len(found) > 20


def test_keys_have_type_range_default_and_an_example(reference: ModuleType) -> None:
    found = {row[0]: row for row in rows(reference.recipe_page())}
    assert found["`accumulation_steps`"][1:3] == ["whole number from 1", "`1`"]
    assert found["`schedule.warmup_epochs`"][1] == "number from 0"
    assert found["`lr`"][1] == "number above 0 to 10" and found["`lr`"][4].startswith("`")
    assert found["`schedule.kind`"][1] == "`cosine` or `multistep` or `polynomial` or `constant`"


def test_commands_metrics_and_names_are_all_there(reference: ModuleType) -> None:
    commands, metrics, python = reference.commands_page(), reference.metrics_page(), reference.python_page()
    for verb in VERBS:
        assert f"\n## scalablevit {verb}\n" in commands and f"usage: scalablevit {verb} " in commands
    for info in TASKS.values():
        assert all(f"`{metric.reported_as}`" in metrics for metric in info.metrics)
    functions = [name for name in scalablevit.__all__ if callable(getattr(scalablevit, name))]
    assert functions and all(f"\n## sv.{name}\n" in python for name in functions)


def test_messages_come_with_what_to_do(reference: ModuleType) -> None:
    found = [line for line in reference.errors_page().splitlines() if line.startswith("| ")]
    assert len(found) > 300
    assert any("did you mean" in line or "known here" in line for line in found)


def test_every_key_of_a_document_has_a_meaning(reference: ModuleType) -> None:
    page = reference.json_page()
    found = rows(page)
    assert [key for key, _, meaning in found if not meaning] == []
    assert {"`runs[].best.value`", "`data[].splits{}.unreadable[].path`", "`evidence`"} <= {row[0] for row in found}
    assert "## scalablevit.evaluate" in page and "`version` is 1" in page
