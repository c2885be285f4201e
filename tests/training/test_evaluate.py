"""Undecodable validation samples are left out and counted, up to a limit, also where a batch has nothing else."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from harness.ranks import Attempt, run_attempts

from scalablevit.config.errors import UserError
from scalablevit.data.sources.opening import open_source
from scalablevit.tasks.registry import build_task
from scalablevit.training.evaluate import refuse_bad
from scalablevit.training.worker import WorkerConfig, run

STEPS = {"steps": 2, "global_batch_size": 4, "evaluate_every": {"steps": 2}, "log_every_steps": 2}


def truncate(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:100])


@pytest.mark.parametrize("world", [1, 2])
def test_a_batch_of_nothing_but_a_truncated_file_is_left_out(make_stage, shapes, tmp_path, world):
    """21 images: in batches of 4 (one rank) or 2 (two ranks) the last image is alone."""
    shutil.copytree(shapes / "classification", tmp_path / "classification")
    images = sorted((tmp_path / "classification" / "val").rglob("*.jpg"))
    truncate(images[-1])
    truncate(images[0])
    stage = make_stage(data={"root": str(tmp_path)}, training=STEPS, cluster={"workers": world})
    worker_config = WorkerConfig(stage.model_dump_json(), str(tmp_path / "run"), str(tmp_path), None)
    metrics = run_attempts([Attempt(worker_config)], world, tmp_path)[0]["last_metrics"]
    assert (metrics["val/samples"], metrics["val/bad_samples"]) == (19, 2)


def test_a_split_of_nothing_but_bad_samples_is_refused_with_their_number(make_segmentation, shapes, tmp_path):
    """Whatever the task's metric makes of no sample."""
    shutil.copytree(shapes / "segmentation", tmp_path / "segmentation")
    images = sorted((tmp_path / "segmentation" / "images" / "val").iterdir())
    for image in images:
        truncate(image)
    stage = make_segmentation(data={"root": str(tmp_path)}, training=STEPS)
    worker_config = WorkerConfig(stage.model_dump_json(), str(tmp_path / "run"), str(tmp_path), None)
    what, where, fix = run_attempts([Attempt(worker_config)], 1, tmp_path)[0]["error"]
    assert what == f"none of the {len(images)} validation samples could be decoded"
    assert where == "data.val" and "check" in fix


def test_segmentation_leaves_out_a_lone_bad_sample(make_segmentation, shapes, tmp_path):
    shutil.copytree(shapes / "segmentation", tmp_path / "segmentation")
    truncate(sorted((tmp_path / "segmentation" / "images" / "val").iterdir())[-1])
    stage = make_segmentation(data={"root": str(tmp_path)}, training=STEPS)
    worker_config = WorkerConfig(stage.model_dump_json(), str(tmp_path / "run"), str(tmp_path), None)
    metrics = run_attempts([Attempt(worker_config)], 1, tmp_path)[0]["last_metrics"]
    assert (metrics["val/samples"], metrics["val/bad_samples"]) == (20, 1)


@pytest.mark.parametrize(("fraction", "allowed"), [(0.09, "1.89"), (0.1, "")])
def test_an_evaluation_leaves_out_no_more_than_the_recipe_allows(make_stage, shapes, tmp_path, fraction, allowed):
    """2 of 21 files whose headers are whole: only decoding tells."""
    shutil.copytree(shapes / "classification", tmp_path / "classification")
    for image in sorted((tmp_path / "classification" / "val").rglob("*.jpg"))[:2]:
        image.write_bytes(image.read_bytes()[:-20])
    stage = make_stage(data={"root": str(tmp_path), "max_bad_fraction": fraction})
    weights = build_task(stage, open_source(stage.data, "val", tmp_path).classes).build_model().state_dict()
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
    given = WorkerConfig(stage.model_dump_json(), "", str(tmp_path), str(file), evaluate_only=True)
    found = run(given, 0, 1, torch.device("cpu"), lambda records, node: None)
    if not allowed:
        assert found.error is None and found.metrics["val/bad_samples"] == 2 and found.metrics["val/samples"] == 19
        return
    assert found.metrics is None
    assert found.error.what == (
        f"2 of 21 validation samples could not be decoded; data.max_bad_fraction allows {allowed}"
    )
    assert "check" in found.error.fix and "raise data.max_bad_fraction" in found.error.fix
    with pytest.raises(UserError, match="none of the 3"):
        refuse_bad(3, 3, 3.0)


def test_a_training_ends_when_too_much_of_its_validation_cannot_be_decoded(make_stage, shapes, tmp_path):
    """Above the limit of training samples, a fraction of 1000: the best of such evaluations would be chance."""
    shutil.copytree(shapes / "classification", tmp_path / "classification")
    for image in sorted((tmp_path / "classification" / "val").rglob("*.jpg"))[:2]:
        truncate(image)
    stage = make_stage(data={"root": str(tmp_path), "max_bad_fraction": 0.001}, training=STEPS)
    worker_config = WorkerConfig(stage.model_dump_json(), str(tmp_path / "run"), str(tmp_path), None)
    ended = run_attempts([Attempt(worker_config)], 1, tmp_path)[0]
    assert {record["step"] for record in ended["records"]} == {1, 2}, "none waits for a next report"
    what, where, _ = ended["error"]
    assert (what, where) == (
        "2 of 21 validation samples could not be decoded; data.max_bad_fraction allows 1", "data.val",
    )  # fmt: skip
