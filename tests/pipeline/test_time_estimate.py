"""A plan's time is that of a finished run of the same model and size on this machine, or not known."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.config.rewriting import upgrade_text
from scalablevit.pipeline.plan_summary import format_time
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.time_estimate import TimeEstimate, estimate_time, least_seconds, long_warning
from scalablevit.runs.status import Status, write_status

VERSION_1 = Path(__file__).parents[1] / "data" / "version1"
TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
PROFILE = {"start": 50.0, "data": 5.0, "step": 90.0, "evaluation": 5.0}
STATUS = Status(
    run="earlier", state="finished", why="", stage="pretrain", step=12, total=12, unit="steps", best=None,
    host=socket.gethostname(), process=1, job="", started=0.0, updated=1.0, ended=1.0, folder="", tracking="",
)  # fmt: skip


def resolved(*overrides: str) -> ResolvedStage:
    stage = load_recipe(TINY, overrides).stages["pretrain"]
    return ResolvedStage(
        name="pretrain", stage=stage, run_name="tiny-pretrain-0", hash="0", digest="content:0", classes=("cat", "dog"),
        train_samples=96, val_samples=25, unreadable=0, ignored=(), notes=(), length=Length.of(stage, 96),
    )  # fmt: skip


def measure(root: Path, *overrides: str, name: str = "earlier", host: str = STATUS.host, **result: Any) -> Path:
    """Leave a finished run of 12 steps."""
    folder = root / "runs" / name
    (folder / "model").mkdir(parents=True)
    stage = resolved(*overrides).stage
    (folder / "model" / "config.json").write_text(json.dumps({"stage": stage.model_dump(mode="json")}))
    kept = {
        "name": "pretrain", "run_name": name, "uid": "0", "folder": str(folder), "metric": "val/top1", "value": 0.5,
        "step": 12, "metrics": {}, "classes": [], "images_per_s": 2.0, "minutes": 2.5, "reason": "finished",
        "checkpoint": "", "weights_sha256": "", "registered_as": "", "lineage": {}, "last_step": 12,
        "profile": PROFILE, **result,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(kept))
    write_status(folder, replace(STATUS, host=host))
    return folder


STEPS = ["stages.pretrain.training.epochs=null", "stages.pretrain.training.steps=36"]


def test_the_time_grows_with_the_images_but_for_the_start(tmp_path: Path) -> None:
    measure(tmp_path)
    found = estimate_time(resolved(*STEPS), tmp_path)
    assert found == TimeEstimate(50.0 + 3 * 100.0, "earlier")
    assert format_time(found) == "about 5.8 min, as earlier ran on this machine"
    larger = [*STEPS, "stages.pretrain.training.global_batch_size=32"]
    assert resolved().stage.training.global_batch_size == 16
    assert estimate_time(resolved(*larger), tmp_path) == TimeEstimate(50.0 + 6 * 100.0, "earlier")


def test_a_run_of_version_1_counts(tmp_path: Path) -> None:
    """6 steps of 8 images, as version 1 left them; 12 steps of 16 take four times as long but for the start."""
    name = "old-pretrain-7341480e100e"
    folder = tmp_path / "runs" / name
    shutil.copytree(VERSION_1 / "runs" / name, folder)
    write_status(folder, STATUS)
    (tmp_path / "old.yaml").write_text(upgrade_text((VERSION_1 / "old.yaml").read_text(), "old.yaml")[0])
    recipe = load_recipe(tmp_path / "old.yaml", ["training.steps=12", "training.global_batch_size=16"])
    stage = recipe.stages["pretrain"]
    estimate = estimate_time(replace(resolved(), stage=stage, length=Length.of(stage, 32)), tmp_path)
    profile = json.loads((folder / "result.json").read_bytes())["profile"]
    start = profile.pop("start")
    assert estimate is not None and estimate.run == name
    assert estimate.seconds == pytest.approx(start + 4 * sum(profile.values()))


def test_without_a_profile_the_images_a_second_count(tmp_path: Path) -> None:
    measure(tmp_path, profile={})
    assert estimate_time(resolved(*STEPS), tmp_path) == TimeEstimate(36 * 16 / 2.0, "earlier")


@pytest.mark.parametrize(
    "override",
    ["model.name=resnet18", "stages.pretrain.data.image_size=16", "cluster.workers=1", "model.options={qkv_bias: true}",
     "stages.pretrain.training.precision=bfloat16"],
)  # fmt: skip
def test_another_model_size_or_number_of_workers_is_not_measured(override: str, tmp_path: Path) -> None:
    measure(tmp_path)
    assert estimate_time(resolved(override), tmp_path) is None
    assert format_time(None) == "not measured on this machine; pipelines/plan.py --measure predicts it"


def test_other_machines_and_damaged_runs_do_not_count(tmp_path: Path) -> None:
    assert estimate_time(resolved(), tmp_path) is None
    measure(tmp_path, host="elsewhere")
    assert estimate_time(resolved(), tmp_path) is None
    for name, file in (("a", "result.json"), ("b", "status.json"), ("c", "model/config.json")):
        (measure(tmp_path, name=name) / file).write_text("{")
    (measure(tmp_path, name="d") / "status.json").unlink()
    assert estimate_time(resolved(), tmp_path) is None
    measure(tmp_path, name="e")
    assert estimate_time(resolved(), tmp_path) == TimeEstimate(150.0, "e")


def test_without_a_measured_run_the_operations_say_what_a_cpu_takes_at_the_least() -> None:
    """36 steps of 16 images of 32 x 32 pixels on 2 cores, three forward passes of 2 operations each."""
    stage = resolved(*STEPS)
    assert (stage.stage.cluster.workers, stage.stage.cluster.cpus_per_worker) == (2, 1)
    seconds = least_seconds(stage, 1e6)
    assert seconds == pytest.approx(6 * 1e6 * 36 * 16 * 32 * 32 / (2 * 2e11))
    assert least_seconds(resolved(*STEPS, "stages.pretrain.training.precision=bfloat16"), 1e6) == seconds / 5
    smaller = resolved(*STEPS, "stages.pretrain.training.image_size_schedule=[{size: 16, steps: 18}]")
    assert least_seconds(smaller, 1e6) == pytest.approx(seconds * (0.5 + 0.5 / 4))
    (warning,) = long_warning(stage.stage, None, 1800.0)
    assert warning.startswith("probably more than 2 h 0 min on 2 CPU cores"), warning
    assert "take 30.0 min at 200 GFLOP/s a core" in warning
    assert "training.steps (36), data.image_size (32), model.name (scalablevit_tiny)" in warning
    assert long_warning(stage.stage, None, 900.0) == []
    assert long_warning(stage.stage, TimeEstimate(60.0, "earlier"), 7200.0) == [], "a measured run counts for more"


def test_detections_smallest_images_are_counted() -> None:
    """Sides between 48 and 64 pixels, and a long side that few images reach."""
    stage = load_recipe(TINY, ["stages.detect.data.long_side=640"]).stages["detect"]
    detect = replace(resolved(), name="detect", stage=stage, length=Length.of(stage, 96))
    assert least_seconds(detect, 1e6) == pytest.approx(6 * 1e6 * 20 * 8 * 48 * 48 / 2e11)


def test_more_than_an_hour_on_cpus_names_what_shortens_it() -> None:
    stage = resolved("stages.pretrain.training.epochs=7.5", "stages.pretrain.training.steps=null").stage
    (warning,) = long_warning(stage, TimeEstimate(3601.0, "earlier"))
    assert warning.endswith("training.epochs (7.5), data.image_size (32), model.name (scalablevit_tiny)")
    (by_steps,) = long_warning(resolved(*STEPS).stage, TimeEstimate(3601.0, "earlier"))
    assert "training.steps (36), " in by_steps
    assert long_warning(stage, TimeEstimate(3600.0, "earlier")) == long_warning(stage, None) == []
    on_gpu = resolved("cluster.gpus_per_worker=1").stage
    assert long_warning(on_gpu, None, 9e9) == []
    assert long_warning(on_gpu, TimeEstimate(9e9, "earlier")) == []
