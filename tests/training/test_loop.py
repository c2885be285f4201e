"""How the loop ends, and what it refuses to carry on with."""

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from harness.ranks import Attempt, newest, run_attempts

from scalablevit.config.recipe import Length
from scalablevit.data.dataset import Bad
from scalablevit.data.sampler import TrainBatches, TrainOrder
from scalablevit.run_files import BAD_SAMPLES
from scalablevit.tasks.registry import build_task
from scalablevit.training import callbacks, worker
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.loop import TrainContext
from scalablevit.training.pace import Pace
from scalablevit.training.worker import WorkerConfig


def run(stage, folder: Path):
    return run_attempts([Attempt(WorkerConfig(stage.model_dump_json(), str(folder), str(folder), None))], 1, folder)[0]


def test_early_stop_counts_patience(make_stage, tmp_path):
    """A learning rate of nearly nothing never gains: the first evaluation is the best, then two more."""
    training = {"steps": 50, "global_batch_size": 8, "evaluate_every": {"steps": 2},
                "early_stopping": {"patience": 2}}  # fmt: skip
    result = run(make_stage(optimizer={"lr": 1e-12}, training=training), tmp_path)
    assert result["reason"] == "stopped early"
    assert (result["step"], result["best_step"]) == (6, 2)


def test_early_stop_holds_after_a_restart(make_stage, tmp_path):
    training = {"steps": 50, "global_batch_size": 8, "evaluate_every": {"steps": 2},
                "early_stopping": {"patience": 1}}  # fmt: skip
    stage = make_stage(optimizer={"lr": 1e-12}, training=training)
    assert run(stage, tmp_path)["step"] == run(stage, tmp_path)["step"] == 4


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing_of_it(make_stage, tmp_path):
    stage = make_stage(
        optimizer={"lr": 10.0, "name": "sgd", "weight_decay": 0.0},
        training={"steps": 40, "global_batch_size": 8, "evaluate_every": {"steps": 40}, "log_every_steps": 5},
    )
    result = run(stage, tmp_path)
    what, _, fix = result["error"]
    assert "not finite" in what and "optimizer.lr" in fix
    assert CheckpointStore(str(tmp_path)).entries() == []


def test_the_first_steps_are_reported_besides_the_schedule(make_stage, tmp_path):
    """Averages over the steps since the last report: the parts weigh as many steps as they are of."""
    every = make_stage(training={"steps": 12, "global_batch_size": 8, "log_every_steps": 1})
    seldom = make_stage(training={"steps": 12, "global_batch_size": 8, "log_every_steps": 4})
    single, means = (losses(run(stage, tmp_path / str(n))) for n, stage in enumerate((every, seldom)))
    assert list(means) == [1, 2, 4, 5, 8, 10, 12]
    assert means[1] == single[1] and means[5] == single[5]
    assert means[4] == pytest.approx((single[3] + single[4]) / 2)


def losses(result):
    return {r["step"]: r["metrics"]["train/loss"] for r in result["records"] if "train/loss" in r["metrics"]}


def test_before_a_node_leaves_the_step_is_saved_and_the_workers_make_way(make_stage, tmp_path, monkeypatch):
    """And what goes on from there ends as if nothing had been."""
    monkeypatch.setattr(
        worker, "pace_of", lambda world: Pace(0.2, 1.0, 0.0)
    )  # asked after each step from the first report on
    stage = make_stage(training={"steps": 6, "global_batch_size": 8, "evaluate_every": {"steps": 6}})
    given = WorkerConfig(stage.model_dump_json(), str(tmp_path / "left"), str(tmp_path), None)
    asked = []

    def about_to_go():
        asked.append(True)
        return len(asked) == 1

    cpu = torch.device("cpu")
    result = worker.run(given, 0, 1, cpu, lambda *_: None, about_to_go=about_to_go)
    assert (result.training.reason, result.training.step) == ("node leaving", 2)
    assert newest(str(tmp_path / "left")).step == 2
    assert worker.run(given, 0, 1, cpu, lambda *_: None, about_to_go=about_to_go).training.reason == "finished"
    assert run(stage, tmp_path / "whole")["reason"] == "finished"
    left, whole = (newest(str(tmp_path / name)).files["model"] for name in ("left", "whole"))
    assert all(torch.equal(left[name], whole[name]) for name in whole)


def test_the_time_spent_is_kept_through_a_restart(make_stage, tmp_path):
    stage = make_stage(training={"steps": 4, "global_batch_size": 8, "evaluate_every": {"steps": 2}})
    given = WorkerConfig(stage.model_dump_json(), str(tmp_path), str(tmp_path), None)
    run_attempts([Attempt(given, stop_at=3)], 1, tmp_path)
    saved = newest(str(tmp_path)).meta
    result = run(stage, tmp_path)
    assert result["spent"].keys() == {"data", "checkpoint", "evaluation"}
    assert all(result["spent"][part] > saved["spent"][part] for part in ("data", "evaluation"))
    assert 0 < result["spent"]["data"] + result["spent"]["checkpoint"] < result["seconds"]


def test_training_stops_above_the_fraction_of_bad_samples(make_stage, shapes, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shapes / "classification", copy / "classification")
    for image in sorted((copy / "classification" / "train").rglob("*.jpg"))[::2]:
        image.write_bytes(image.read_bytes()[:100])
    stage = make_stage(
        data={"root": str(copy), "max_bad_fraction": 0.01},
        training={"steps": 30, "global_batch_size": 8, "evaluate_every": {"steps": 30}, "log_every_steps": 5},
    )
    what, _, fix = run(stage, tmp_path / "run")["error"]
    assert "could not be decoded" in what and BAD_SAMPLES in fix
    lines = (tmp_path / "run" / BAD_SAMPLES).read_text().splitlines()
    assert 5 < len(lines) <= 32
    shown = [line.split("\t") for line in lines[:5]]
    assert all(f"{path}: {reason}" in what for path, reason in shown)
    assert f"and {len(lines) - 5} more files" in what


def test_a_few_bad_samples_are_counted_and_skipped(make_stage, shapes, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shapes / "classification", copy / "classification")
    bad = sorted((copy / "classification" / "train").rglob("*.jpg"))[3]
    bad.write_bytes(b"no image")
    stage = make_stage(data={"root": str(copy)}, training={"steps": 16, "global_batch_size": 8, "log_every_steps": 16})
    result = run(stage, tmp_path / "run")
    assert result["reason"] == "finished"
    counted = [r["metrics"]["train/bad_samples"] for r in result["records"] if "train/bad_samples" in r["metrics"]]
    assert counted[-1] == 2, "two epochs meet the bad file twice"
    (line,) = (tmp_path / "run" / BAD_SAMPLES).read_text().splitlines()
    path, reason = line.split("\t")
    assert Path(path) == bad and reason


def spoil(images: Iterable[Path]) -> None:
    for image in images:
        image.write_bytes(b"no image")


@pytest.mark.parametrize("kind", ["classification", "segmentation", "detection"])
def test_steps_whose_samples_are_all_bad_move_no_weight(request, shapes, tmp_path, monkeypatch, kind):
    """By the loss of each task, and by one that is not a number without samples, such as a user's may be."""
    make = request.getfixturevalue("make_stage" if kind == "classification" else f"make_{kind}")
    shutil.copytree(shapes, tmp_path / "data")
    spoil(sorted((tmp_path / "data" / kind).rglob("train/**/*.jpg"))[1:])
    training = {"steps": 16, "global_batch_size": 4, "evaluate_every": {"steps": 16}, "log_every_steps": 1}
    optimizer = {"lr": 1e-3, "name": "sgd", "weight_decay": 0.0, "momentum": 0.0}
    stage = make(data={"root": str(tmp_path / "data"), "max_bad_fraction": 1.0}, training=training, optimizer=optimizer)

    def weights_after(name):
        given, metrics = WorkerConfig(stage.model_dump_json(), str(tmp_path / name), str(tmp_path), None), []
        ended = worker.run(given, 0, 1, torch.device("cpu"), lambda records, _: metrics.extend(records))
        assert ended.error is None and ended.training.reason == "finished"
        by_step = {record.step: record.metrics for record in metrics if "train/loss" in record.metrics}
        (trained,) = (step for step, values in by_step.items() if values["train/loss"] > 0)
        assert len(by_step) > 8
        for step, values in by_step.items():
            assert step == trained or all(values[part] == 0 for part in values if "loss" in part or "norm" in part)
        assert by_step[16]["train/bad_samples"] == 63
        return newest(str(tmp_path / name)).files["model"]

    own = weights_after("own")

    def poisoned_without_samples(stage, classes):
        task = build_task(stage, classes)
        loss_of = task.loss

        def loss(model, batch):
            value, parts = loss_of(model, batch)
            return value / bool(batch.samples), {"loss_part": value.detach() / batch.samples, **parts}

        task.loss = loss
        return task

    monkeypatch.setattr(worker, "build_task", poisoned_without_samples)
    poisoned = weights_after("poisoned")
    assert all(torch.equal(own[name], poisoned[name]) for name in own)


@pytest.mark.parametrize(("global_batch_size", "images"), [(1, 1), (2, 2), (8, 2)])
def test_blank_images_are_no_more_than_a_micro_batch_which_fits_in_memory(make_stage, global_batch_size, images):
    stage = make_stage(training={"steps": 1, "global_batch_size": global_batch_size})
    task = build_task(stage, ("a", "b", "c"))
    context = TrainContext(stage, Length.of(stage, 64), task, torch.device("cpu"), 0, 1)
    blank = callbacks.with_images(task.collate("train")([Bad(0, "x.jpg", "cut")]), context)
    assert (len(blank.images), blank.samples, blank.bad) == (images, 0, [("x.jpg", "cut")])


def test_a_rank_whose_samples_are_all_bad_changes_no_gradient(make_stage, shapes, tmp_path):
    """Rank 1 has nothing, and its loss is not a number: rank 0 trains as if it were finite."""
    shutil.copytree(shapes / "classification", tmp_path / "classification")
    images = sorted((tmp_path / "classification" / "train").rglob("*.jpg"))
    training = {"steps": 4, "global_batch_size": 8, "evaluate_every": {"steps": 4}, "log_every_steps": 1}
    stage = make_stage(data={"root": str(tmp_path), "max_bad_fraction": 1.0}, training=training, cluster={"workers": 2})
    order = TrainOrder(len(images), 1, stage.training.seed)
    keys = TrainBatches(order, global_batch_size=8, accumulation_steps=1, rank=1, world=2, first_step=0, end_step=4)
    spoil(images[key.index] for batch in keys for key in batch)
    config = [WorkerConfig(stage.model_dump_json(), str(tmp_path / name), str(tmp_path), None) for name in "ab"]
    poison = dict.fromkeys(range(4), (1, "loss not a number"))
    plain, poisoned = run_attempts([Attempt(config[0]), Attempt(config[1], poison=poison)], 2, tmp_path)
    assert plain["reason"] == poisoned["reason"] == "finished"
    assert list(losses(plain).values()) == list(losses(poisoned).values()) and all(losses(plain).values())
    first, second = (newest(str(tmp_path / name)).files["model"] for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bad_files_of_every_rank_are_named(make_stage, shapes, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(shapes / "classification", copy / "classification")
    bad = sorted((copy / "classification" / "train").rglob("*.jpg"))[::9]
    for image in bad:
        image.write_bytes(b"no image")
    stage = make_stage(
        data={"root": str(copy)}, training={"steps": 8, "global_batch_size": 8}, cluster={"workers": 2}
    )  # one epoch
    worker_config = WorkerConfig(stage.model_dump_json(), str(tmp_path / "run"), str(copy), None)
    assert run_attempts([Attempt(worker_config)], 2, tmp_path)[0]["reason"] == "finished"
    lines = (tmp_path / "run" / BAD_SAMPLES).read_text().splitlines()
    assert [Path(line.split("\t")[0]) for line in lines] == bad


def test_no_bad_sample_makes_no_file(make_stage, tmp_path):
    assert run(make_stage(training={"steps": 2, "global_batch_size": 8}), tmp_path)["reason"] == "finished"
    assert not (tmp_path / BAD_SAMPLES).exists()


def test_bfloat16_autocast_trains(make_stage, tmp_path):
    stage = make_stage(training={"steps": 2, "global_batch_size": 8, "precision": "bfloat16"})
    assert run(stage, tmp_path)["reason"] == "finished"


def test_learning_is_visible(make_stage, tmp_path):
    """Two hundred steps on flat colours, which a working loop separates completely."""
    for split, count in (("train", 16), ("val", 8)):
        for name, colour in (("blue", (220, 40, 40)), ("green", (40, 220, 40)), ("red", (40, 40, 220))):
            folder = tmp_path / "data" / "classification" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng([number, len(name)]).integers(-30, 30, (40, 40, 3))
                cv2.imwrite(str(folder / f"{number}.png"), np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
    stage = make_stage(
        data={"root": str(tmp_path / "data")},
        training={"steps": 30, "global_batch_size": 12, "evaluate_every": {"steps": 30}},
    )
    assert run(stage, tmp_path / "run")["best_value"] == 1.0


@pytest.mark.parametrize("action", ["stop", "continue"])
def test_a_full_disk_stops_training_or_does_not(make_stage, tmp_path, monkeypatch, action):
    """The checkpoint of step 2 cannot be written, the later ones can: what was saved last counts."""
    write = CheckpointStore.write

    def full(self, snapshot, value):
        if snapshot.step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, snapshot, value)

    monkeypatch.setattr(CheckpointStore, "write", full)
    save = callbacks.WorkerCallbacks.save

    def save_and_wait(self, state, value):
        save(self, state, value)
        self.writer.wait()  # so that the next log point knows

    monkeypatch.setattr(callbacks.WorkerCallbacks, "save", save_and_wait)
    training = {"steps": 8, "global_batch_size": 8, "evaluate_every": {"steps": 8}, "checkpoint_every": {"steps": 2},
                "log_every_steps": 1, "on_checkpoint_failure": action}  # fmt: skip
    result = run(make_stage(training=training), tmp_path)
    if action == "stop":
        what, _, fix = result["error"]
        assert "checkpoint at step 2 was not written" in what and "No space left" in what and "free space" in fix
        assert CheckpointStore(str(tmp_path)).entries() == []
    else:
        assert (result["reason"], result["step"]) == ("finished", 8)
        assert [entry.step for entry in CheckpointStore(str(tmp_path)).entries()] == [6, 8]
