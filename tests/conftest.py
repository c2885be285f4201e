"""Settings of all tests."""

import os
from collections.abc import Iterator

import pytest
from harness.driving import Driver, driving
from harness.heads import Head, running
from hypothesis import settings

pytest_plugins = ["harness.distribution", "harness.fault_table", "harness.not_run", "harness.rotation"]

if "PYTEST_XDIST_WORKER" in os.environ:
    # as many processes as cores already: more threads in each only wait for one another (torch, NumPy; read on import)
    os.environ["OMP_NUM_THREADS"] = "1"

# the same examples in every run, and no verdict by the clock of a busy machine
settings.register_profile("scalablevit", derandomize=True, deadline=None)
settings.load_profile("scalablevit")


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
