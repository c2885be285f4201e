"""The classification task beyond what training shows of it."""

import json
from typing import Any

import pytest
import torch

from scalablevit.config.recipe import Stage
from scalablevit.tasks.classification.costs import ClassifierCosts
from scalablevit.tasks.classification.task import ClassificationTask, wilson_lower_bound
from scalablevit.tasks.segmentation.task import SegmentationTask

CLASSES = ("a", "b", "c")


def classification_stage(name: str) -> Stage:
    split = {"images": "images"}
    sections: dict[str, Any] = {
        "data": {"source": "image_folder", "root": "data", "train": split, "val": split, "image_size": 64,
                 "eval_resize": 64},
        "model": {"name": name},
        "task": {"kind": "classification"},
        "optimizer": {"lr": 1e-3},
        "training": {"steps": 2, "global_batch_size": 4},
    }  # fmt: skip
    return Stage.model_validate_json(json.dumps(sections))


@pytest.mark.parametrize("name", ["scalablevit_tiny", "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_cost_is_counted_without_weights(name: str) -> None:
    """A real model would draw its weights from the generator, and take their memory."""
    stage = classification_stage(name)
    task = ClassificationTask(stage, CLASSES)
    before = torch.get_rng_state()
    cost = ClassifierCosts(stage, CLASSES).count()
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.parameters == sum(parameter.numel() for parameter in task.build_model().parameters())
    assert 0 < cost.macs <= cost.macs_with_attention


def test_a_stage_of_the_other_task_is_refused(segmentation_stage: Any) -> None:
    with pytest.raises(TypeError, match="not a classification stage: task segmentation, source mask_pairs"):
        ClassificationTask(segmentation_stage(), CLASSES)
    with pytest.raises(TypeError, match="not a segmentation stage: task classification, source image_folder"):
        SegmentationTask(classification_stage("resnet18"), CLASSES)


def test_wilsons_bound_is_the_tabulated_one() -> None:
    """Newcombe (1998), table I, method 3: 81 of 263 gives 0.2553, 0 of 20 gives 0."""
    assert wilson_lower_bound(81, 263) == pytest.approx(0.2553, abs=5e-5)
    assert wilson_lower_bound(0, 20) == pytest.approx(0, abs=1e-12)
