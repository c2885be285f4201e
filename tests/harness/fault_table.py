"""The table of faults: a result line for machines as each test ends, and a row for people at the end.

A test or module names its row with `pytest.mark.row("...")`; tests of one row count together. What a test measures it
hands over with pytest's own `record_property(name, value)`. SCALABLEVIT_CHAOS_RESULTS names a file for the result
lines (JSON, appended).

A plugin, not a conftest.py: when several processes run the tests, the one that reports collects none and reads none.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

RESULTS = os.environ.get("SCALABLEVIT_CHAOS_RESULTS")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # reports of pytest-xdist's workers come to the one that started them
        config.pluginmanager.register(FaultTable())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The report takes along the row that its test counts in."""
    report: Any = yield
    marker = item.get_closest_marker("row")
    report.row = marker.args[0] if marker else None
    return report


@dataclass
class Row:
    """Tests of one kind of fault."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)


class FaultTable:
    """Collects the reports of all tests that name a row."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        # a worker that died reports for its test by itself, without a row
        name = getattr(report, "row", None)
        if name is not None and (report.when == "call" or report.failed):
            _count(self.rows.setdefault(name, Row()), report)
            _write(name, report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows:
            return
        terminalreporter.section("faults")
        width = max(map(len, self.rows))
        for name, row in sorted(self.rows.items()):
            verdict = f"{len(row.failed)} FAILED" if row.failed else "passed"
            count = row.passed + len(row.failed)
            metrics = ", ".join(f"{key} {value}" for key, value in row.metrics.items())
            line = f"{name:<{width}}  {count:>5} cases {row.seconds:>6.0f} s  {verdict}  {metrics}"
            terminalreporter.line(line.rstrip())
            for test in row.failed:
                terminalreporter.line(f"{'':<{width}}  {test}")


def _count(row: Row, report: pytest.TestReport) -> None:
    row.seconds += report.duration
    row.metrics.update(report.user_properties)
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
        "metrics": dict(report.user_properties),
    }
    with Path(RESULTS).open("a") as file:
        file.write(json.dumps(line) + "\n")
