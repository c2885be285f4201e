"""A small real data set on disk, and stages on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scalablevit.config.data import Shapes
from scalablevit.config.recipe import Stage
from scalablevit.data.shapes import write_shapes

MakeStage = Callable[..., Stage]
NARROW = {"channels": [8, 16, 24, 32], "num_heads": [1, 1, 2, 2], "depths": [2, 2, 2, 2]}
"""Options of scalablevit_tiny that leave all its kinds of layers and a hundredth of its work and checkpoint."""


def merged(base: dict[str, dict[str, Any]], sections: dict[str, dict[str, Any]]) -> Stage:
    """The stage of `base` with sections updated; scalablevit_tiny is narrow unless options are given."""
    model = {**base["model"], **sections.get("model", {})}
    if model["name"] == "scalablevit_tiny":
        sections = {**sections, "model": {"options": NARROW, **model}}
    names = [*base, *(name for name in sections if name not in base)]
    return Stage.model_validate_json(json.dumps({n: {**base.get(n, {}), **sections.get(n, {})} for n in names}))


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set, 64 training and 21 validation images of 64 pixels (21: no multiple of 2 or 3 ranks)."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(Shapes(train_images=64, val_images=21, image_size=64), root)
    return root


@pytest.fixture(scope="session")
def make_stage(shapes: Path) -> MakeStage:
    """Builds a classification stage from section overrides, such as `training={"steps": 3}`."""

    def make(**sections: dict[str, Any]) -> Stage:
        base: dict[str, dict[str, Any]] = {
            "data": {
                "source": "image_folder",
                "root": str(shapes),
                "train": {"images": "classification/train"},
                "val": {"images": "classification/val"},
                "image_size": 32,
                "eval_resize": 32,
            },
            "model": {"name": "scalablevit_tiny"},
            "task": {"kind": "classification"},
            "optimizer": {"lr": 1e-3},
            "training": {"steps": 6, "global_batch_size": 13, "evaluate_every": {"steps": 4}, "log_every_steps": 3},
        }
        return merged(base, sections)

    return make


@pytest.fixture(scope="session")
def make_segmentation(shapes: Path) -> MakeStage:
    """Builds a segmentation stage on the same data."""

    def make(**sections: dict[str, Any]) -> Stage:
        base: dict[str, dict[str, Any]] = {
            "data": {
                "source": "mask_pairs",
                "root": str(shapes),
                "train": {"images": "segmentation/images/train", "masks": "segmentation/annotations/train"},
                "val": {"images": "segmentation/images/val", "masks": "segmentation/annotations/val"},
                "classes": "segmentation/classes.txt",
                "short_side": 64,
                "long_side": 64,
                "crop_size": 64,
            },
            "model": {"name": "scalablevit_tiny"},
            "task": {"kind": "segmentation", "head": "semantic_fpn", "neck_channels": 16, "head_channels": 16},
            "optimizer": {"lr": 1e-3},
            "training": {"steps": 4, "global_batch_size": 6, "evaluate_every": {"steps": 4}, "log_every_steps": 2},
        }
        return merged(base, sections)

    return make


@pytest.fixture(scope="session")
def make_detection(shapes: Path) -> MakeStage:
    """Builds a detection stage on the same data."""

    def make(**sections: dict[str, Any]) -> Stage:
        base: dict[str, dict[str, Any]] = {
            "data": {
                "source": "coco",
                "root": str(shapes),
                "train": {"images": "detection/train", "annotations": "detection/annotations/instances_train.json"},
                "val": {"images": "detection/val", "annotations": "detection/annotations/instances_val.json"},
                "short_side": 64,
                "long_side": 64,
                "train_short_sides": [48, 64],
            },
            "model": {"name": "scalablevit_tiny"},
            "task": {
                "kind": "detection", "head": "mask_rcnn", "neck_channels": 16, "head_channels": 16, "anchor_size": 8,
                "proposals": 20, "roi_samples": 16, "max_detections": 5,
            },
            "optimizer": {"lr": 1e-3},
            "training": {"steps": 4, "global_batch_size": 6, "evaluate_every": {"steps": 4}, "log_every_steps": 2},
        }  # fmt: skip
        return merged(base, sections)

    return make
