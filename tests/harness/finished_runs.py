"""Fixtures: untrained models over the built-in shapes, as finished runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.toys import STAGES, finished_run, make_root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and the runs toy-pretrain-0, toy-segment-0 and toy-detect-0; not to be changed by tests."""
    root = make_root(tmp_path_factory.mktemp("toys"))
    for name in STAGES:
        finished_run(root, name)
    return root
