"""The table of faults: a result line for machines as each test ends, and a row for people at the end.

A test or module names its row with `pytest.mark.row("...")`; tests of one row count together. What a test measures it
hands over with pytest's own `record_property(name, value)`. SCALABLEVIT_CHAOS_RESULTS names a file for the result
lines (JSON, appended).
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

RESULTS = os.environ.get("SCALABLEVIT_CHAOS_RESULTS")


@dataclass
class Row:
    """Tests of one kind of fault."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


ROWS = pytest.StashKey[dict[str, Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    report: pytest.TestReport = yield
    marker = item.get_closest_marker("row")
    if marker is not None and (report.when == "call" or report.failed):
        row = item.config.stash[ROWS].setdefault(marker.args[0], Row())
        _count(row, report)
        _write(marker.args[0], report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("faults")
    width = max(map(len, rows))
    for name, row in rows.items():
        verdict = f"{len(row.failed)} FAILED" if row.failed else "passed"
        count = row.passed + len(row.failed)
        figures = ", ".join(f"{key} {value}" for key, value in row.figures.items())
        terminalreporter.line(f"{name:<{width}}  {count:>5} cases {row.seconds:>6.0f} s  {verdict}  {figures}".rstrip())
        for test in row.failed:
            terminalreporter.line(f"{'':<{width}}  {test}")


def _count(row: Row, report: pytest.TestReport) -> None:
    row.seconds += report.duration
    row.figures.update(report.user_properties)
    if report.failed:
        row.failed.append(report.nodeid)
    else:
        row.passed += 1


def _write(name: str, report: pytest.TestReport) -> None:
    if RESULTS is None:
        return
    line = {
        "row": name,
        "test": report.nodeid,
        "outcome": report.outcome,
        "seconds": round(report.duration, 3),
        "figures": dict(report.user_properties),
    }
    with Path(RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")
