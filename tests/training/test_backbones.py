"""Any timm backbone takes the place of ScalableViT, by recipe alone: trains, evaluates, saves, in all tasks."""

import pytest
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.training.worker import Assignment

BACKBONES = ["scalablevit_tiny", "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"]


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_trains_in_the_loop(name, kind, make_stage, make_segmentation, make_detection, tmp_path):
    make = {"classification": make_stage, "segmentation": make_segmentation, "detection": make_detection}[kind]
    options = {"img_size": 32} if kind == "classification" and name.startswith("swin") else {}
    stage = make(
        model={"name": name, "options": options},
        training={"steps": 2, "global_batch_size": 4, "evaluate_every": {"steps": 2}, "log_every_steps": 1},
    )
    result = run_attempts(
        [Attempt(Assignment(stage.model_dump_json(), str(tmp_path), str(tmp_path), None))], 1, tmp_path
    )[0]
    assert result["reason"] == "finished", result
    assert 0 <= result["best_value"] <= 1
    assert newest(str(tmp_path)).step == 2
