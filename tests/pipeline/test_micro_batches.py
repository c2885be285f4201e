"""Micro-batches of one image, of which batch norm has no statistics, are refused before anything is started."""

from typing import Any

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.pipeline.stage_model import check_micro_batches

DATA = {
    "classification": {"source": "image_folder", "train": {"images": "t"}, "val": {"images": "v"}, "image_size": 64},
    "detection": {
        "source": "coco",
        "train": {"images": "t", "annotations": "t"},
        "val": {"images": "v", "annotations": "v"},
    },
    "segmentation": {
        "source": "mask_pairs",
        "train": {"images": "t", "masks": "t"},
        "val": {"images": "v", "masks": "v"},
        "classes": ["a", "b"],
    },
}
TASK = {"classification": {}, "detection": {"head": "retinanet", "neck_channels": 8}}


def stage(kind: str, model: str, batch: int, accumulation: int = 1, **cluster: Any) -> Stage:
    return Stage.model_validate(
        {
            "data": {**DATA[kind], "root": "r"},
            "model": {"name": model},
            "task": {"kind": kind, **TASK.get(kind, {"head": "upernet"})},
            "optimizer": {"lr": 0.1},
            "training": {"epochs": 1.0, "global_batch_size": batch, "accumulation_steps": accumulation},
            "cluster": cluster,
        }
    )


@pytest.mark.parametrize("kind", TASK)
@pytest.mark.parametrize(("batch", "accumulation", "workers"), [(1, 1, 1), (3, 1, 2), (7, 2, 2)])
def test_single_images_under_batch_norm_are_refused(kind: str, batch: int, accumulation: int, workers: int) -> None:
    with pytest.raises(UserError) as caught:
        check_micro_batches("first", stage(kind, "resnet18", batch, accumulation, workers=workers), ("a", "b"))
    said = str(caught.value)
    assert "stage first: training.global_batch_size: " in said and "batch norm of resnet18" in said
    assert f"fix: at least {2 * workers * accumulation}" in said


@pytest.mark.parametrize("kind", TASK)
@pytest.mark.parametrize(
    ("model", "batch", "cluster"),
    [
        ("resnet18", 2, {}),
        ("resnet18", 4, {"workers": 2}),
        ("scalablevit_tiny", 1, {}),
        ("resnet18", 2, {"workers": 2, "gpus_per_worker": 1.0}),  # SyncBatchNorm
    ],
)
def test_other_micro_batches_and_norms_pass(kind: str, model: str, batch: int, cluster: dict[str, Any]) -> None:
    check_micro_batches("first", stage(kind, model, batch, **cluster), ("a", "b"))


def test_single_images_under_the_batch_norm_of_a_head_are_refused() -> None:
    with pytest.raises(UserError) as caught:
        check_micro_batches("first", stage("segmentation", "scalablevit_tiny", 3, workers=2), ("a", "b"))
    said = str(caught.value)
    assert "stage first: training.global_batch_size: " in said and "upernet's batch norm" in said
    assert "fix: at least 4" in said
    check_micro_batches("first", stage("segmentation", "scalablevit_tiny", 4, workers=2), ("a", "b"))


def test_elastic_workers_that_may_be_one_are_refused() -> None:
    elastic = stage("classification", "resnet18", 2, workers=2, min_workers=1, gpus_per_worker=1.0)
    with pytest.raises(UserError, match="at least 4"):
        check_micro_batches("first", elastic, ("a", "b"))
