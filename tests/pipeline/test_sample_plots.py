"""Pictures of samples: that they show what they should, and leave nothing half written."""

import json
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from harness.batches import detection_batch, label_batch
from hotcoco import mask as run_lengths
from matplotlib.backends.backend_agg import FigureCanvasAgg

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.data.decoding import BadSample, read_image
from scalablevit.data.instances import Instances
from scalablevit.data.shapes import CLASSES, write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline import sample_plots
from scalablevit.pipeline.sample_plots import save_pair, save_predictions, save_training_batch
from scalablevit.tasks.detection import drawing as detection_drawing
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.viz.palette import class_color

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
    """Of classes whose names would be wrong as matplotlib's mathematics."""
    monkeypatch.setattr(detection_drawing, "SHOWN_SCORE", 0.0)  # also what fresh weights detect
    stage = stage_of(name)
    task, source = opened(stage, shapes, "train")
    task = build_task(stage, tuple(f"$^$ {each}" for each in source.classes))
    save_training_batch(task, stage, source, tmp_path / "train.png")
    source = opened(stage, shapes, "val")[1]
    save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")
    for name in ("train.png", "val.png"):
        picture = cv2.imread(str(tmp_path / name))
        assert picture is not None and picture.std() > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.png", "val.png"]


def drawn_metric(monkeypatch):
    """Where the next picture's metric will be."""
    metrics = []
    monkeypatch.setattr(sample_plots, "save", lambda metric, file: metrics.append(metric))
    return metrics


def colours_at(figure, axes, points):
    """Colours (n, 3) from 0 to 1 of a metric at x, y (n, 2) of one of its axes; fine enough for a line's middle."""
    figure.set_dpi(300)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    columns, rows = axes.transData.transform(points).astype(int).T
    return picture[len(picture) - 1 - rows, columns]


@pytest.mark.parametrize(("name", "first", "share"), [("segment", 0, 0.55), ("detect", 1, 0.45)])
def test_true_masks_cover_their_pixels_and_no_others(name, first, share, shapes, tmp_path, monkeypatch):
    """Both tasks have the same scenes; the label map says which class is where."""
    metrics = drawn_metric(monkeypatch)
    stage = stage_of(name)
    task, source = opened(stage, shapes, "val")
    save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")
    axes = metrics[0].axes[0]
    for over in (*axes.texts, *axes.patches, *filter(None, [axes.get_legend()])):
        over.remove()
    scenes = shapes / "tiny-data" / "segmentation"
    wanted = read_image(scenes / "images" / "val" / "000000.jpg", 10**6) / 255
    labels = cv2.imread(str(scenes / "annotations" / "val" / "000000.png"), cv2.IMREAD_UNCHANGED)
    for label in np.unique(labels[labels >= first]):
        here = labels == label
        wanted[here] = (1 - share) * wanted[here] + share * np.array(class_color(label - first)) / 255
    rows, columns = np.indices(labels.shape)
    found = colours_at(metrics[0], axes, np.stack([columns.ravel(), rows.ravel()], 1))
    assert np.abs(found - wanted.reshape(-1, 3)).max() < 0.02


def test_what_large_masks_take_goes_by_the_picture_not_by_the_image(tmp_path, monkeypatch):
    metrics = drawn_metric(monkeypatch)
    masks = np.zeros((1080, 1920, 8), np.uint8, order="F")
    for number in range(8):
        masks[300:800, 200 * number : 200 * number + 100, number] = 1
    found = Instances((1080, 1920), np.zeros((8, 4), np.float32), np.arange(8), np.zeros(8, bool),
                      np.full(8, 5e4, np.float32), run_lengths.encode(masks))  # fmt: skip
    tracemalloc.start()
    truth = task_kind("detection").drawing().ground_truth_of(detection_batch(instances=[found]), 0)
    save_pair("detection", np.full((90, 160, 3), 0.5, np.float32), truth, truth, tmp_path / "pair.png")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10 * 1080 * 1920  # bytes; one mask as a layer of its own has 32 for each pixel
    points = [(200 * number + x, 500) for number in range(8) for x in (50, 150)]
    seen = colours_at(metrics[0], metrics[0].axes[1], points)
    tinted = [0.55 * 0.5 + 0.45 * np.array(class_color(number)) / 255 for number in range(8)]
    assert np.abs(seen[::2] - tinted).max() < 0.02 and np.abs(seen[1::2] - 0.5).max() < 0.02


def test_boxes_stand_where_they_are(shapes, tmp_path, monkeypatch):
    """On images that the model sees smaller than their boxes are given."""
    metrics = drawn_metric(monkeypatch)
    stage = stage_of("detect", "stages.detect.data.short_side=48", "stages.detect.data.long_side=64")
    task, source = opened(stage, shapes, "val")
    detections = Detections(
        boxes=torch.tensor([[5.0, 12.0, 33.0, 60.0]]), labels=torch.tensor([2]), scores=torch.ones(1)
    )
    monkeypatch.setattr(task, "predict", lambda model, batch: [detections] * batch.samples)
    save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")
    annotated = json.loads((shapes / "tiny-data/detection/annotations/instances_val.json").read_text())
    last = [each for each in annotated["annotations"] if each["image_id"] == annotated["images"][0]["id"]][-1]
    left, top, width, height = last["bbox"]
    true = (left, top, left + width, top + height), CLASSES.index(name_of(annotated, last["category_id"]))
    for axes, ((x1, y1, x2, y2), label) in zip(metrics[0].axes, (true, ((5, 12, 33, 60), 2)), strict=False):
        for text in list(axes.texts):
            text.remove()
        middles = [((x1 + x2) / 2, y1), ((x1 + x2) / 2, y2), (x1, (y1 + y2) / 2), (x2, (y1 + y2) / 2)]
        found = colours_at(metrics[0], axes, middles)
        assert np.abs(found - np.array(class_color(label)) / 255).max() < 0.01


def name_of(annotated, category):
    return next(each["name"] for each in annotated["categories"] if each["id"] == category)


def test_a_training_image_is_put_back_into_its_colours(shapes):
    stage = stage_of("pretrain", "data.mean=[0.2, 0.4, 0.6]", "data.std=[0.1, 0.2, 0.3]")
    task, _ = opened(stage, shapes, "train")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    prepared = task.prepare(label_batch(images=torch.from_numpy(pixels), labels=[0]), "val", ())
    shown = sample_plots._colours(prepared.images[0], stage)
    assert np.abs(shown * 255 - pixels[0]).max() < 0.01


def test_a_split_that_cannot_be_read_is_said(shapes, tmp_path, monkeypatch):
    stage = stage_of("pretrain")
    task, source = opened(stage, shapes, "val")
    monkeypatch.setattr("scalablevit.data.sources.base.read_image", unreadable)
    with pytest.raises(ValueError, match="none of 6 images could be read"):
        save_predictions(task, stage, task.build_model(), source, tmp_path / "val.png")


def unreadable(path, limit, background):
    raise BadSample(str(path), "cut short")
