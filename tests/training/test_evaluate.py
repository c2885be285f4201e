"""Undecodable validation samples are left out and counted, also where a batch or a rank has nothing else."""

import shutil
from pathlib import Path

import pytest
from harness.ranks import Attempt, run_attempts

from scalablevit.training.worker import WorkerConfig

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
