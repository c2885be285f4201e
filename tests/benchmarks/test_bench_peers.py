"""The comparison with peers: its arithmetic, its stages, and each loop on a few made-up pictures."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from benchmarks import mmengine_loop, our_loop, timm_loop
from benchmarks.bench_peers import MMENGINE, TIMM, compare, noise_of, peer_metrics, stage_for
from benchmarks.coco_speed import coco_times, gibibytes, scenes_of
from benchmarks.toy_stage import write_pictures

from scalablevit.config.data import Split
from scalablevit.config.errors import UserError

OPTIONS = argparse.Namespace(quick=False, epochs=None, seeds=None)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, train=12, val=6, side=32)
    return folder


# --- arithmetic ---


def test_a_score_is_held_against_the_noise_between_seeds():
    rates = {"ours": [110.0, 110, 90], "theirs": [100.0, 90, 100]}
    scores = {"ours": [0.50, 0.52, 0.54], "theirs": [0.53, 0.55, 0.57]}
    # standard error sqrt(2 * 0.02^2 / 3), t(0.975, 4) = 2.7764
    assert noise_of(scores) == pytest.approx(2.7764 * (2 * 0.02**2 / 3) ** 0.5, rel=1e-4)
    speed, score = peer_metrics(TIMM, 5, rates, scores)
    assert speed.measured == 1.1 and speed.verdict == "met"
    assert score.measured == pytest.approx(-3.0) and score.bar == pytest.approx(-4.534, abs=1e-3)
    assert score.verdict == "met"
    assert "5 epochs, 3 seeds" in score.baseline
    scores["ours"] = [each - 0.03 for each in scores["ours"]]
    assert peer_metrics(TIMM, 5, rates, scores)[1].verdict == "missed"


def test_one_seed_is_not_judged():
    _, score = peer_metrics(TIMM, 1, {"ours": [2.0, 2], "theirs": [1.0, 1]}, {"ours": [0.5], "theirs": [0.7]})
    assert (score.bar, score.verdict, score.measured) == (None, "", pytest.approx(-20.0))
    assert "one seed" in score.note


def test_rates_of_mmengine_leave_the_first_window_out():
    assert mmengine_loop.rates([9.0] * 20 + [0.5] * 20 + [0.25] * 10, batch=4) == [8.0, 16.0]


# --- stages ---


def test_a_shorter_training_has_a_shorter_warm_up():
    stage = stage_for(TIMM, Path("/pictures"), epochs=5, seed=7)
    assert stage.data.root == "/pictures/classification-cifar10"
    assert (stage.training.epochs, stage.training.seed, stage.cluster.workers) == (5, 7, 1)
    assert stage.optimizer.schedule.warmup_epochs == pytest.approx(0.3)
    stage = stage_for(MMENGINE, Path("/pictures"), epochs=8, seed=0)
    assert (stage.task.kind, stage.data.root, stage.model.init) == ("segmentation", "/pictures", None)
    assert stage.optimizer.schedule.warmup_steps == 10
    assert stage.data.color_jitter == 0


def test_missing_data_is_named_with_what_to_do(tmp_path):
    options = argparse.Namespace(**vars(OPTIONS), data=tmp_path)
    with pytest.raises(UserError, match=r"no folder classification-cifar10\n  fix: .*make bench DATA=<folder>"):
        compare(TIMM, options, {})


# --- loops ---


def run(monkeypatch, script, stage, folder: Path) -> float:
    """The score that a script comes to."""
    folder.mkdir()
    (folder / "stage.json").write_text(stage.model_dump_json())
    monkeypatch.setattr(sys, "argv", ["", *(str(folder / each) for each in ("stage.json", "run", "out.json"))])
    assert script.main() == 0
    result = json.loads((folder / "out.json").read_text())
    assert result["rates"] == []  # not as many steps
    return float(result["score"])


def tiny(stage, pictures: Path, data: dict):
    """The stage on made-up pictures, at a few steps."""
    training = stage.training.model_copy(update={"global_batch_size": 4, "epochs": 2})
    return stage.model_copy(update={"data": stage.data.model_copy(update={"root": str(pictures), **data}),
                                    "training": training})  # fmt: skip


def test_timms_loop_and_ours_train_the_same_stage(monkeypatch, tmp_path, pictures):
    splits = {split: Split(images=f"classification/{split}") for split in ("train", "val")}
    stage = tiny(stage_for(TIMM, pictures, 2, 0), pictures, {**splits, "image_size": 32, "eval_resize": 32})
    for script in (timm_loop, our_loop):
        score = run(monkeypatch, script, stage, tmp_path / script.__name__)
        assert score * 6 == pytest.approx(round(score * 6)), "a share of 6 pictures"


def test_mmengines_runner_and_ours_train_the_same_stage(monkeypatch, tmp_path, pictures):
    splits = {
        split: Split(images=f"segmentation/images/{split}", masks=f"segmentation/annotations/{split}")
        for split in ("train", "val")
    }
    sizes = {"short_side": 32, "long_side": 64, "crop_size": 32}
    stage = tiny(stage_for(MMENGINE, pictures, 2, 0), pictures, {**splits, **sizes})
    for script in (mmengine_loop, our_loop):
        assert 0 < run(monkeypatch, script, stage, tmp_path / script.__name__) < 1


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_both_evaluations_come_to_the_same_metrics(kind, monkeypatch):
    scenes = scenes_of(3)
    assert gibibytes(scenes, 3) < 1
    assert {way: len(taken) for way, taken in coco_times(scenes, kind, 1).items()} == {"ours": 1, "pycocotools": 1}
    monkeypatch.setattr("benchmarks.coco_speed.pycocotools_ap", lambda *_: 0.123)
    with pytest.raises(RuntimeError, match=r"pycocotools says \[0\.123"):
        coco_times(scenes, kind, 1)
