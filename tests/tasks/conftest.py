"""Small segmentation and detection stages."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scalablevit.config.recipe import Stage

MakeStage = Callable[..., Stage]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def segmentation_stage() -> MakeStage:
    """A stage of mask pairs with 64-pixel crops; arguments replace whole entries of `task`, `data`, ... by key."""

    def make(**sections: dict[str, Any]) -> Stage:
        split = {"images": "images", "masks": "masks"}
        defaults: dict[str, dict[str, Any]] = {
            "data": {
                "source": "mask_pairs", "root": "data", "train": split, "val": split, "classes": "classes.txt",
                "short_side": 64, "long_side": 128, "crop_size": 64,
            },
            "model": {"name": "test_resnet"},
            "task": {"kind": "segmentation", "head": "semantic_fpn", "neck_channels": 16, "head_channels": 16},
            "optimizer": {"lr": 1e-3},
            "training": {"steps": 2, "global_batch_size": 4},
            "cluster": {},
        }  # fmt: skip
        return Stage.model_validate_json(
            json.dumps({name: {**part, **sections.get(name, {})} for name, part in defaults.items()})
        )

    return make


@pytest.fixture
def detection_stage() -> MakeStage:
    """A stage of COCO instances at 96 x 160 pixels at most; arguments replace entries of `task`, `data`, ... by key.

    The task's own entries are the recipe's defaults.
    """

    def make(**sections: dict[str, Any]) -> Stage:
        defaults: dict[str, dict[str, Any]] = {
            "data": {
                "source": "coco", "root": "data",
                "train": {"images": "train", "annotations": "train.json"},
                "val": {"images": "val", "annotations": "val.json"},
                "short_side": 96, "long_side": 160,
            },
            "model": {"name": "test_resnet"},
            "task": {"kind": "detection", "head": "mask_rcnn"},
            "optimizer": {"lr": 1e-3},
            "training": {"steps": 2, "global_batch_size": 2},
            "cluster": {},
        }  # fmt: skip
        return Stage.model_validate_json(
            json.dumps({name: {**part, **sections.get(name, {})} for name, part in defaults.items()})
        )

    return make
