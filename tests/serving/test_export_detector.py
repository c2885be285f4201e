"""A detector's ONNX file detects what the network does, and docs/serve_and_export.md shows how to use it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from harness.exported import page_predict, photos
from harness.toys import stage_of
from PIL import Image

from scalablevit.data.decoding import read_image
from scalablevit.serving.export import build_parts, export_part
from scalablevit.serving.export_detector import ExportedDetector, compare_detections, export_detector, nearest
from scalablevit.serving.network import TrainedNetwork
from scalablevit.serving.preprocessing import describe_preprocessing
from scalablevit.tasks.registry import build_task, task_kind

CLASSES = ("a", "b", "c")
SIZE = (64, 64)
MOST = 300


def decided(head: str, *changes: str) -> TrainedNetwork:
    """A detector whose scores and boxes differ from place to place, as a trained one's do."""
    # nothing is cut off near the least score that is compared
    values = (f"head={head}", "score_threshold=0.03", f"max_detections={MOST}")
    stage = stage_of("detect", *(f"stages.detect.task.{each}" for each in values), *changes)
    torch.manual_seed(0)
    built, predictor = build_task(stage, CLASSES), task_kind("detection").build_predictor(stage, CLASSES)
    network = built.build_model().eval()
    if head == "retinanet":
        for part in network.head.modules():
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(part.weight)
        logits = network.head.classification_head.cls_logits
        torch.nn.init.normal_(logits.weight, std=0.3)
        torch.nn.init.constant_(logits.bias, -4.0)
        return TrainedNetwork(stage, built, predictor, network, torch.device("cpu"))
    for part in (network.rpn.head.cls_logits, network.roi_heads.box_predictor.cls_score):
        torch.nn.init.normal_(part.weight, std=0.5)
    for part in (network.rpn.head.bbox_pred, network.roi_heads.box_predictor.bbox_pred):
        torch.nn.init.normal_(part.weight, std=0.05)
    return TrainedNetwork(stage, built, predictor, network, torch.device("cpu"))


def exported(trained: TrainedNetwork, files: list[Path], out: Path) -> ExportedDetector:
    images = [read_image(file, 10**6) for file in files]
    facts = describe_preprocessing(trained.stage, CLASSES, SIZE)
    (network, *_) = build_parts(trained, images, SIZE)
    assert export_part(network, out, "toy", facts).faithful
    return export_detector(trained, network, out, facts)


@pytest.mark.long
@pytest.mark.rotating("detector export", 60)
@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_the_page_detects_as_we_do(tmp_path, head):
    trained = decided(head, "model.name=test_resnet", "model.drop_path_rate=null")
    files = photos(tmp_path / "photos")[:2]  # that fill SIZE
    found = exported(trained, files, tmp_path)
    assert found.faithful and found.compared >= 5 * len(files), found
    graph = onnx.load(found.file)
    onnx.checker.check_model(graph)
    assert [each.name for each in graph.graph.input] == ["pixels", "size"]
    assert [each.name for each in graph.graph.output] == ["boxes", "scores", "labels", "masks"][
        : 3 + (head == "mask_rcnn")
    ]
    predict = page_predict()
    for file in files:
        boxes, scores, labels = predict(str(found.file), str(file))
        with torch.inference_mode():
            prediction = trained.predict(read_image(file, 10**6)).to_dict()
        numbers = [np.array([CLASSES.index(name) for name in names]) for names in (labels, prediction["labels"])]
        ours = [np.array(prediction["boxes"]), np.array(prediction["scores"]), numbers[1]]
        for some, others in ((ours, [boxes, scores, numbers[0]]), ([boxes, scores, numbers[0]], ours)):
            near = nearest(some, others, MOST)
            assert len(near.some) and near.corners.max() <= 1.0 and near.scores.max() <= 0.01
    Image.new("RGB", (100, 20)).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="--size 32x64"):
        predict(str(found.file), str(tmp_path / "flat.png"))


@pytest.mark.long
def test_the_flagship(tmp_path):
    found = exported(decided("mask_rcnn"), photos(tmp_path / "photos"), tmp_path)
    assert found.faithful and found.compared >= 10


def test_detections_are_compared_with_the_nearest_of_their_class():
    some = [np.array([[0, 0, 9, 9], [5, 5, 9, 9], [1, 1, 2, 2.0]]), np.array([0.9, 0.5, 0.04]), np.array([0, 1, 0])]
    others = [np.array([[5, 5, 9, 9], [0, 0.5, 9, 9.0]]), np.array([0.5, 0.88]), np.array([0, 0])]
    near = nearest(some, others, MOST)
    assert (near.some.tolist(), near.others.tolist()) == ([0, 1], [1, -1])
    assert near.corners.tolist() == [0.5, np.inf]
    assert near.scores.tolist() == [pytest.approx(0.02), np.inf]
    assert nearest(some, others, 2).corners.tolist() == [0.5], "0.5 is no better than the last of two"
    nothing = [np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)]
    assert nearest(some, nothing, MOST).corners.tolist() == [np.inf, np.inf]
    assert nearest(nothing, some, MOST).corners.tolist() == []


@pytest.mark.parametrize(
    ("unmatched", "pixels", "score", "mask", "faithful"),
    [(0, 1.0, 0.01, 0.05, True), (1, 0, 0, 0, False), (0, 1.1, 0, 0, False), (0, 0, 0.02, 0, False),
     (0, 0, 0, 0.06, False), (0, np.nan, 0, 0, False), (0, 0, np.nan, 0, False), (0, 0, 0, np.nan, False)],
)  # fmt: skip
def test_what_is_faithful(unmatched, pixels, score, mask, faithful):
    assert ExportedDetector(Path("d.onnx"), 9, unmatched, pixels, score, mask).faithful is faithful


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["boxes", "scores", "masks"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_is_not_finite_is_no_equal_detection(part, place, value):
    """Also in the last detection, whose score is too low to be compared."""
    masks = np.full((3, 2, 2), 0.5)
    expected = [np.arange(12.0).reshape(3, 4), np.array([0.9, 0.5, 0.04]), np.array([0, 1, 2]), masks]
    detected = [column.copy() for column in expected]
    file = Path("d.onnx")
    assert compare_detections(file, expected, detected, MOST) == ExportedDetector(file, 2, 0, 0.0, 0.0, 0.0)
    detected[("boxes", "scores", "labels", "masks").index(part)][place] = value
    assert not compare_detections(file, expected, detected, MOST).faithful
    assert not compare_detections(file, detected, expected, MOST).faithful


def test_a_comparison_of_nothing_is_said():
    line = ExportedDetector(Path("d.onnx"), 0, 0, 0.0, 0.0).summary()
    assert line.startswith("warning: d.onnx was not compared") and "0.05" in line
    assert ExportedDetector(Path("d.onnx"), 0, 2, 0.0, 0.0).summary().startswith("d.onnx: 0 detections")
