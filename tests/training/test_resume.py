"""A run stopped at any step and resumed ends bit for bit like one that was never stopped."""

from pathlib import Path

import pytest
import torch
from ranks import Attempt, newest, run_attempts

from scalablevit.config.recipe import Stage
from scalablevit.training.worker import Assignment

EVERYTHING_RANDOM = {
    "data": {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.25, "rand_augment": {}, "repeats": 3},
    "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.2},
    "task": {"kind": "classification", "label_smoothing": 0.1},
    "optimizer": {"lr": 1e-3, "clip_norm": 5.0},
}


def assignment(stage: Stage, folder: Path) -> Assignment:
    return Assignment(stage.model_dump_json(), str(folder), str(folder), None)


def assert_same(one: Path, other: Path) -> None:
    """Weights, average, optimizer state and best evaluation, bit for bit."""
    a, b = newest(str(one)), newest(str(other))
    assert a.step == b.step
    assert a.files.keys() == b.files.keys()
    for file, tensors in a.files.items():
        assert tensors.keys() == b.files[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, b.files[file][name]), f"{file}: {name} differs"
    for key in ("best_value", "best_step", "best_metrics", "last_metrics", "running", "evaluations_without_gain"):
        assert a.meta[key] == b.meta[key], key


@pytest.mark.parametrize("world", [1, 2, 3])
def test_classification_resumes_exactly(world, make_stage, tmp_path):
    stage = make_stage(
        **EVERYTHING_RANDOM,
        training={
            "steps": 6, "global_batch": 13, "accumulation": 2, "ema_decay": 0.9, "evaluate_every": {"steps": 4},
            "checkpoint_every": {"steps": 1}, "log_every_steps": 3,
        },
        cluster={"workers": world},
    )  # fmt: skip
    whole, stopped = assignment(stage, tmp_path / "whole"), assignment(stage, tmp_path / "stopped")
    attempts = [Attempt(whole), *(Attempt(stopped, stop_at=step) for step in (1, 3, 5)), Attempt(stopped)]
    results = run_attempts(attempts, world, tmp_path)
    assert results[1:4] == [{}, {}, {}], "the attempts were not stopped"
    assert results[4]["step"] == 6
    assert_same(tmp_path / "whole", tmp_path / "stopped")
    assert figures(results[0]["records"]) == figures(results[4]["records"]), "a metric was lost or differs"


def figures(records):
    """All figures that do not measure time, by step."""
    timed = ("train/images_per_s", "train/data_wait")
    by_step = {}
    for record in records:
        kept = {name: value for name, value in record["metrics"].items() if name not in timed}
        by_step.setdefault(record["step"], {}).update(kept)
    return by_step


def test_batch_norm_and_segmentation_resume_exactly(make_segmentation, tmp_path):
    """Batch statistics of rank 0 are the run's; dropout and drop path are drawn anew at each step."""
    stage = make_segmentation(
        model={"name": "resnet18"},
        training={
            "steps": 4,
            "global_batch": 6,
            "evaluate_every": {"steps": 2},
            "log_every_steps": 2,
            "ema_decay": 0.9,
        },
        cluster={"workers": 2},
    )
    whole, stopped = assignment(stage, tmp_path / "whole"), assignment(stage, tmp_path / "stopped")
    results = run_attempts([Attempt(whole), Attempt(stopped, stop_at=3), Attempt(stopped)], 2, tmp_path)
    assert results[1] == {}
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_two_ranks_take_the_step_of_one(make_stage, tmp_path):
    """Same global batch, nothing random but the order: the same weights within float32 rounding."""
    plain = {"model": {"name": "scalablevit_tiny", "drop_path_rate": 0.0}, "optimizer": {"lr": 1e-3, "name": "sgd"}}
    for world in (1, 2):
        stage = make_stage(
            **plain,
            training={"steps": 2, "global_batch": 13, "evaluate_every": {"steps": 2}},
            cluster={"workers": world},
        )
        run_attempts([Attempt(assignment(stage, tmp_path / str(world)))], world, tmp_path)
    one, two = newest(str(tmp_path / "1")), newest(str(tmp_path / "2"))
    for name, tensor in one.files["model"].items():
        torch.testing.assert_close(two.files["model"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert one.meta["last_metrics"]["val/samples"] == two.meta["last_metrics"]["val/samples"] == 21


def test_resume_after_the_last_step_trains_nothing(make_stage, tmp_path):
    run = assignment(make_stage(), tmp_path / "run")
    first, second = run_attempts([Attempt(run), Attempt(run)], 1, tmp_path)
    assert second["step"] == first["step"] == 6
    assert second["seconds"] == first["seconds"]
    assert second["best_metrics"] == first["best_metrics"]
