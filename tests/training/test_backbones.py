"""Any timm backbone takes the place of ScalableViT, by recipe alone: trains, evaluates, saves, in all tasks."""

import pytest
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.training.worker import WorkerConfig

BACKBONES = ["scalablevit_tiny", "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"]
NARROWER = {
    "resnet18": {"channels": [8, 16, 32, 64]},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "num_heads": [1, 2, 4, 8], "depths": [2, 2, 2, 2]},
}
"""Options: the same architecture with a hundredth of its weights."""


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_trains_in_the_loop(name, kind, make_stage, make_segmentation, make_detection, tmp_path):
    make = {"classification": make_stage, "segmentation": make_segmentation, "detection": make_detection}[kind]
    options = {**NARROWER.get(name, {})}
    if kind == "classification" and name.startswith("swin"):
        options["img_size"] = 32
    stage = make(
        model={"name": name, **({"options": options} if options else {})},
        training={"steps": 2, "global_batch_size": 4, "evaluate_every": {"steps": 2}, "log_every_steps": 1},
    )
    result = run_attempts(
        [Attempt(WorkerConfig(stage.model_dump_json(), str(tmp_path), str(tmp_path), None))], 1, tmp_path
    )[0]
    assert result["reason"] == "finished", result
    assert 0 <= result["best_value"] <= 1
    assert newest(str(tmp_path)).step == 2
