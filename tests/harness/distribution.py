"""How two processes share the tests: `make test` runs those on a Ray head one after another, beside all others.

Tests of a file stay in one process, where what they share is made once; all files with tests on Ray go to the same
one. (pytest-xdist's own groups, `--dist loadgroup`, have no effect with pytest 9.2, which keeps a test's id elsewhere.)
"""

import os
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[2]
TOGETHER = ("tests/serving/",)
"""Folders whose files share what takes long to make."""
SLOW_FIRST = ("tests/training/test_resume.py", "tests/training/test_nonfinite.py", "tests/chaos/test_ownership.py")


class ByFile(LoadScopeScheduling):
    """Hands out groups of tests, in the order of collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Asked by pytest-xdist, in the process that hands out the tests."""
    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast ones first; where two processes share the tests, one begins with Ray and the other with slow ones."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: (group_of(item.nodeid) != "ray", not item.nodeid.startswith(SLOW_FIRST)))
    else:
        items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


def group_of(nodeid: str) -> str:
    """The group that a test is handed out with."""
    file = nodeid.partition("::")[0]
    if _has_ray(file):
        return "ray"
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


@cache
def _has_ray(file: str) -> bool:
    return "mark.ray" in (ROOT / file).read_text(encoding="utf-8")
