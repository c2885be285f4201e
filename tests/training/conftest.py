"""A small real data set on disk, and stages on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.stages import Sections, checked, data_and_task, merged

from scalablevit.config.data import Shapes
from scalablevit.config.recipe import Stage
from scalablevit.data.shapes import write_shapes

MakeStage = Callable[..., Stage]
NARROW = {"channels": [8, 16, 24, 32], "num_heads": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}
"""Options of scalablevit_tiny that leave all its kinds of layers and a hundredth of its work and checkpoint."""


def maker(kind: str, root: Path, training: dict[str, Any]) -> MakeStage:
    """Builds a stage from section overrides, such as `training={"steps": 3}`; scalablevit_tiny is narrow by default."""

    def make(**sections: dict[str, Any]) -> Stage:
        base: Sections = {
            **data_and_task(kind, str(root)),
            "model": {"name": "scalablevit_tiny"},
            "optimizer": {"lr": 1e-3},
            "training": training,
        }
        wanted = merged(base, sections)
        if wanted["model"]["name"] == "scalablevit_tiny":
            wanted["model"] = {"options": NARROW, **wanted["model"]}
        return checked(wanted)

    return make


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set, 64 training and 21 validation images of 64 pixels (21: no multiple of 2 or 3 ranks)."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(Shapes(train_images=64, val_images=21, image_size=64), root)
    return root


@pytest.fixture(scope="session")
def make_stage(shapes: Path) -> MakeStage:
    """Classification; nothing is mixed unless a test says so."""
    training = {"steps": 6, "global_batch_size": 13, "evaluate_every": {"steps": 4}, "log_every_steps": 3}
    make = maker("classification", shapes, training)
    plain = {"data": {"mixup": 0.0}, "task": {"label_smoothing": 0.0}}
    return lambda **sections: make(**merged(plain, sections))


@pytest.fixture(scope="session")
def make_segmentation(shapes: Path) -> MakeStage:
    """Segmentation on the same data."""
    training = {"steps": 4, "global_batch_size": 6, "evaluate_every": {"steps": 4}, "log_every_steps": 2}
    return maker("segmentation", shapes, training)


@pytest.fixture(scope="session")
def make_detection(shapes: Path) -> MakeStage:
    """Detection on the same data."""
    training = {"steps": 4, "global_batch_size": 6, "evaluate_every": {"steps": 4}, "log_every_steps": 2}
    return maker("detection", shapes, training)
