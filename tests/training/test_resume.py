"""A run stopped at any step and resumed ends bit for bit like one that was never stopped."""

from pathlib import Path

import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.config.recipe import Stage
from scalablevit.training.worker import WorkerConfig

EVERYTHING_RANDOM = {
    "data": {
        "image_size": 48,
        "eval_resize": 48,
        "mixup": 0.8,
        "cutmix": 1.0,
        "random_erasing": 0.25,
        "rand_augment": {},
        "repeated_augmentation": 3,
    },
    "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.2},
    "task": {"kind": "classification", "label_smoothing": 0.1},
    "optimizer": {"lr": 1e-3, "clip_norm": 5.0},
    "training": {
        "steps": 6,
        "global_batch_size": 13,
        "accumulation_steps": 2,
        "ema_decay": 0.9,
        "image_size_schedule": [{"size": 32, "steps": 3}],
        "evaluate_every": {"steps": 4},
        "checkpoint_every": {"steps": 1},
        "log_every_steps": 3,
    },
}
NOTHING_RANDOM = {
    "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.0},
    "optimizer": {"lr": 1e-3, "name": "sgd"},
    "training": {"steps": 2, "global_batch_size": 13, "evaluate_every": {"steps": 2}},
}
BATCH_NORM = {
    "model": {"name": "test_resnet"},
    "training": {
        "steps": 4,
        "global_batch_size": 6,
        "evaluate_every": {"steps": 2},
        "log_every_steps": 2,
        "ema_decay": 0.9,
    },
}
DETECTORS = ("mask_rcnn", "retinanet")
STOPS = (1, 3, 5)
TIMED = ("train/images_per_s", "train/data_wait")


def worker_config(stage: Stage, folder: Path) -> WorkerConfig:
    return WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None)


def detection(head):
    sections = {
        "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.2},
        "training": {
            "steps": 4,
            "global_batch_size": 6,
            "ema_decay": 0.9,
            "evaluate_every": {"steps": 2},
            "log_every_steps": 2,
        },
    }
    if head == "retinanet":
        sections |= {"task": {"head": head, "anchor_size": 16}, "data": {"instance_masks": False}}
    return sections


def classification_attempts(make_stage, world, folder):
    stage = make_stage(**EVERYTHING_RANDOM, cluster={"workers": world})
    whole, stopped = worker_config(stage, folder / "whole"), worker_config(stage, folder / "stopped")
    return [Attempt(whole), *(Attempt(stopped, stop_at=step) for step in STOPS), Attempt(stopped)]


@pytest.fixture(scope="module")
def two_ranks(make_stage, make_segmentation, make_detection, tmp_path_factory):
    """All that two ranks are needed for, in one start of the processes: importing torch is what takes time."""
    folder = tmp_path_factory.mktemp("two-ranks")
    segmentation = make_segmentation(**BATCH_NORM, cluster={"workers": 2})
    whole, stopped = (worker_config(segmentation, folder / f"segmentation-{name}") for name in ("whole", "stopped"))
    plain = worker_config(make_stage(**NOTHING_RANDOM, cluster={"workers": 2}), folder / "plain")
    attempts = [
        *classification_attempts(make_stage, 2, folder),
        Attempt(whole),
        Attempt(stopped, stop_at=3),
        Attempt(stopped),
        Attempt(plain),
    ]
    for head in DETECTORS:
        stage = make_detection(**detection(head), cluster={"workers": 2})
        whole, stopped = (worker_config(stage, folder / f"{head}-{name}") for name in ("whole", "stopped"))
        attempts += [Attempt(whole), Attempt(stopped, stop_at=3), Attempt(stopped)]
    return folder, run_attempts(attempts, 2, folder)


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


def assert_resumed_exactly(results, folder):
    whole, *stopped, resumed = results
    assert stopped == [{}] * len(STOPS), "the attempts were not stopped"
    assert resumed["step"] == whole["step"] == 6
    assert_same(folder / "whole", folder / "stopped")
    assert metrics(whole["records"]) == metrics(resumed["records"]), "a metric was lost or differs"


def metrics(records):
    """All metrics that do not measure time, by step."""
    by_step = {}
    for record in records:
        kept = {name: value for name, value in record["metrics"].items() if name not in TIMED}
        by_step.setdefault(record["step"], {}).update(kept)
    return by_step


@pytest.mark.parametrize("world", [1, 3])
def test_classification_resumes_exactly(world, make_stage, tmp_path):
    """Three ranks: plain DistributedDataParallel would sum in another order after a restart."""
    assert_resumed_exactly(
        run_attempts(classification_attempts(make_stage, world, tmp_path), world, tmp_path), tmp_path
    )


def test_classification_on_two_ranks_resumes_exactly(two_ranks):
    folder, results = two_ranks
    assert_resumed_exactly(results[:5], folder)


def test_batch_norm_and_segmentation_resume_exactly(two_ranks):
    """Batch statistics of rank 0 are the run's; dropout and drop path are drawn anew at each step."""
    folder, results = two_ranks
    assert results[6] == {}, "the attempt was not stopped"
    assert results[7]["step"] == 4
    assert_same(folder / "segmentation-whole", folder / "segmentation-stopped")


@pytest.mark.parametrize("head", DETECTORS)
def test_detection_resumes_exactly(two_ranks, head):
    """Torchvision draws which anchors and regions it learns from: anew at each step."""
    folder, results = two_ranks
    _, stopped, resumed = results[9 + 3 * DETECTORS.index(head) :][:3]
    assert stopped == {}, "the attempt was not stopped"
    assert resumed["step"] == 4
    assert_same(folder / f"{head}-whole", folder / f"{head}-stopped")


def test_two_ranks_take_the_step_of_one(two_ranks, make_stage, tmp_path):
    """Same global batch, nothing random but the order: the same weights within float32 rounding."""
    run_attempts([Attempt(worker_config(make_stage(**NOTHING_RANDOM), tmp_path / "one"))], 1, tmp_path)
    one, two = newest(str(tmp_path / "one")), newest(str(two_ranks[0] / "plain"))
    for name, tensor in one.files["model"].items():
        torch.testing.assert_close(two.files["model"][name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert one.meta["last_metrics"]["val/samples"] == two.meta["last_metrics"]["val/samples"] == 21


def test_resume_after_the_last_step_trains_nothing(make_stage, tmp_path):
    run = worker_config(make_stage(), tmp_path / "run")
    first, second = run_attempts([Attempt(run), Attempt(run)], 1, tmp_path)
    assert second["step"] == first["step"] == 6
    assert second["seconds"] == first["seconds"]
    assert second["best_metrics"] == first["best_metrics"]
