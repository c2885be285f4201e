"""Settings of all tests."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["harness.fault_table"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # as many processes as cores already: more threads in each only wait for one another (torch, NumPy; read on import)
    os.environ["OMP_NUM_THREADS"] = "1"

# the same examples in every run, and no verdict by the clock of a busy machine
settings.register_profile("scalablevit", derandomize=True, deadline=None)
settings.load_profile("scalablevit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first: what starts a Ray head comes last."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config) -> None:
    """The outcome and what failed, appended to the file that `make test` shows at its end."""
    if "SCALABLEVIT_SUMMARY" in os.environ and not hasattr(config, "workerinput"):
        reports = terminalreporter.stats
        failed = [report.nodeid for kind in ("failed", "error") for report in reports.get(kind, [])]
        verdict = "passed" if exitstatus == 0 else f"FAILED with exit code {int(exitstatus)}"
        lines = [f"{verdict}: {len(reports.get('passed', []))} passed, {len(failed)} failed", *failed]
        with Path(os.environ["SCALABLEVIT_SUMMARY"]).open("a") as file:
            file.write("\n  ".join(lines) + "\n")
