"""Untrained models over the built-in shapes, as finished runs."""

import shutil
from pathlib import Path

import pytest
from harness.finished_runs import one_thread, root
from harness.toys import STAGES, finished_run, register, val_images

__all__ = ["one_thread", "root"]


@pytest.fixture(scope="session")
def registry(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of its own with a registered model of each task, versions 1 and 2 by different seeds."""
    place = tmp_path_factory.mktemp("registry") / "root"
    shutil.copytree(root, place)
    for name in STAGES:
        given = ["stages.detect.task.score_threshold=0.0"] if name == "detect" else []
        for seed in (0, 1):
            register(place, finished_run(place, name, *given, seed=seed), f"toy-{name}")
    return place


@pytest.fixture
def images(root, tmp_path) -> Path:
    """A folder of four images that a test may damage."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number, file in enumerate(sorted(val_images(root, "segment").iterdir())[:4]):
        shutil.copy(file, folder / ("sub" if number % 2 else "") / f"{number}.jpg")
    return folder
