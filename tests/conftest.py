"""Settings of all tests."""

import os
from collections.abc import Iterator

import pytest
from harness.driving import Driver, driving
from harness.heads import Head, running
from hypothesis import settings

pytest_plugins = ["harness.fault_table", "harness.rotation"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # as many processes as cores already: more threads in each only wait for one another (torch, NumPy; read on import)
    os.environ["OMP_NUM_THREADS"] = "1"

# the same examples in every run, and no verdict by the clock of a busy machine
settings.register_profile("scalablevit", derandomize=True, deadline=None)
settings.load_profile("scalablevit")


TOGETHER = ("tests/serving",)
"""Folders whose files share what takes long to make; other files are each for themselves."""
SLOW_FIRST = ("tests/training/test_resume.py", "tests/training/test_nonfinite.py", "tests/chaos/test_ownership.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast ones first. When two processes share the tests, one begins with all that need Ray, one after another."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        items.sort(key=_needs_ray)
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if _needs_ray(item) else _place(item)))
    items.sort(key=lambda item: (not _needs_ray(item), not item.nodeid.startswith(SLOW_FIRST)))


def _needs_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None


def _place(item: pytest.Item) -> str:
    """The folder or file whose tests stay in one process, where what they share is made once."""
    file = item.nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """One Ray head for all tests that can share it: two CPUs, and jobs with roots of their own."""
    with running(tmp_path_factory.mktemp("head")) as head:
        yield head


@pytest.fixture(scope="session")
def driver(head: Head) -> Iterator[Driver]:
    """A process on that head in which one script runs after another."""
    with driving(head.environment()) as driver:
        yield driver
