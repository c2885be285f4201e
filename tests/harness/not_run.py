"""The last line of a run of tests: how many were skipped, and for want of what."""

from collections import Counter
from collections.abc import Iterable

import pytest


def format_not_run(reasons: Iterable[str]) -> str:
    """Return the line for the reasons of skipped tests; empty if there are none."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    tests = ", ".join(f"{count} ({reason})" for reason, count in counts.most_common())
    return f"not run: {counts.total()} tests: {tests}" if counts else ""


def pytest_unconfigure(config: pytest.Config) -> None:
    """Print it, below all that pytest prints."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        line = format_not_run(report.longrepr[2] for report in reporter.stats.get("skipped", ()))
        if line:
            reporter.write_line(line)
