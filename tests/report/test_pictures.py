"""Pictures of samples and curves: that they show what they should, and leave nothing half written."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.data.decoding import BadSample
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources import open_source
from scalablevit.report import overlays
from scalablevit.report.curves import save_curves
from scalablevit.report.overlays import save_predictions, save_training_batch
from scalablevit.tasks.task import build_task

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A root with the tiny recipe's data, in small."""
    root = tmp_path_factory.mktemp("root")
    write_shapes(Shapes(train_images=24, val_images=8, image_size=64), root / "tiny-data")
    return root


def stage_of(name, *overrides):
    return load_recipe(TINY, overrides).stages[name]


def opened(stage, shapes, split):
    source = open_source(stage.data, split, shapes)
    return build_task(stage, source.classes), source


@pytest.mark.parametrize("name", ["pretrain", "segment", "detect"])
def test_samples_are_drawn_for_each_task(name, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(overlays, "SHOWN_SCORE", 0.0)  # also what fresh weights detect
    stage = stage_of(name)
    task, source = opened(stage, shapes, "train")
    save_training_batch(task, stage, source, tmp_path / "train.png")
    task, source = opened(stage, shapes, "val")
    save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")
    for name in ("train.png", "val.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None and picture.std() > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.png", "val.png"]


def test_a_training_image_is_put_back_into_its_colours(shapes):
    stage = stage_of("pretrain", "data.mean=[0.2, 0.4, 0.6]", "data.std=[0.1, 0.2, 0.3]")
    task, _ = opened(stage, shapes, "train")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    prepared = task.prepare({"image": torch.from_numpy(pixels)}, "val", ())
    shown = overlays._colours(prepared["image"][0], stage)
    assert np.abs(shown * 255 - pixels[0]).max() < 0.01


def test_a_split_that_cannot_be_read_is_said(shapes, tmp_path, monkeypatch):
    stage = stage_of("pretrain")
    task, source = opened(stage, shapes, "val")
    monkeypatch.setattr("scalablevit.data.dataset.read_image", unreadable)
    with pytest.raises(ValueError, match="none of 6 images could be read"):
        save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")


def unreadable(path, limit):
    raise BadSample(str(path), "cut short")


def test_curves_leave_out_what_is_not_finite_and_mark_the_best(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("scalablevit.report.curves.save", lambda figure, file: drawn.append(figure))
    rows = {1: {"time": "t", "train/loss": 2.0, "train/lr": 0.1}, 2: {"train/loss": "NaN"}, 4: {"train/loss": 1.0},
            5: {"val/top1": 0.5}, 8: {"val/top1": 0.25}}  # fmt: skip
    save_curves(rows, "val/top1", tmp_path / "curves.png")
    loss, evaluation, *_ = drawn[0].axes
    assert loss.get_lines()[0].get_xydata().tolist() == [[1, 2.0], [4, 1.0]]
    assert [text.get_text() for text in evaluation.get_legend().get_texts()] == ["val/top1"]
    assert evaluation.get_title() == "best val/top1 0.5000 at step 5"


def test_curves_of_a_run_without_figures_are_an_empty_picture(tmp_path):
    save_curves({}, "val/top1", tmp_path / "plots" / "curves.png")
    assert cv2.imread(str(tmp_path / "plots" / "curves.png")) is not None
