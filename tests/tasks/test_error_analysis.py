"""What is said of single images, and what all of them tell, against the tasks' own metrics."""

import numpy as np
import pytest
import torch
from harness.batches import detection_batch, label_batch, mask_batch
from harness.coco_scenes import CLASSES, made_scenes, metric_of

from scalablevit.data.instances import Instances
from scalablevit.tasks.classification.error_analysis import ClassErrorAnalysis
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.error_analysis import BoxErrorAnalysis
from scalablevit.tasks.segmentation.confusion import ConfusionMetric
from scalablevit.tasks.segmentation.error_analysis import MaskErrorAnalysis

NAMES = ("cat", "dog", "cow")


def test_a_class_image_is_as_wrong_as_its_loss():
    logits = torch.tensor([[4.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
    analysis = ClassErrorAnalysis(NAMES)
    scores = analysis.update(logits, label_batch(labels=torch.tensor([0, 2]), indices=torch.tensor([7, 5])))
    assert [each.index for each in scores] == [7, 5]
    assert [each.error for each in scores] == pytest.approx([0.03596, 4.03596], abs=1e-4)
    assert scores[1].summary == "label cow, predicted cat 0.96; loss 4.04"
    assert [each.outcome for each in scores] == ["right", "wrong"]
    assert analysis.details() == {"confusions": [[0, 0, 1], [2, 0, 1]]}


def test_a_mask_is_as_wrong_as_its_overlaps():
    """Of class 0 two of three pixels, of class 1 none of two; the ignored pixel does not count."""
    truth = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    found = torch.tensor([[0, 0, 0, 2]], dtype=torch.uint8)
    scores = MaskErrorAnalysis(NAMES).update([found], mask_batch(masks=[truth], indices=torch.tensor([3])))
    assert scores[0].error == pytest.approx(1 - (2 / 3 + 0) / 2)
    assert scores[0].summary == "mean IoU 0.33 over 2 classes; lowest dog 0.00"


@pytest.mark.parametrize(
    ("predicted", "outcome"),
    [([0, 0, 1, 1], "right"), ([0, 1, 1, 1], "right"), ([0, 0, 0, 0], "partly"), ([1, 1, 0, 2], "wrong")],
)
def test_a_mask_is_right_where_every_class_overlaps_by_half(predicted, outcome):
    truth, found = (torch.tensor([row], dtype=torch.uint8) for row in ([0, 0, 1, 1], predicted))
    (score,) = MaskErrorAnalysis(NAMES).update([found], mask_batch(masks=[truth], indices=torch.tensor([0])))
    assert score.outcome == outcome


def test_pixels_are_counted_as_by_the_metric():
    draws = np.random.default_rng(0)
    sizes = draws.integers(3, 9, (5, 2))
    masks = [torch.from_numpy(draws.choice([0, 1, 2, 255], size).astype(np.uint8)) for size in sizes]
    found = [torch.from_numpy(draws.integers(0, 3, size).astype(np.uint8)) for size in sizes]
    analysis, metric = MaskErrorAnalysis(NAMES), ConfusionMetric(NAMES)
    for part in (slice(0, 2), slice(2, 5)):
        batch = mask_batch(masks=masks[part], indices=torch.arange(5)[part])
        analysis.update(found[part], batch)
        metric.update(found[part], batch)
    counts = np.zeros((3, 3), np.int64)
    for label, prediction, pixels in analysis.details()["confusions"]:
        counts[label, prediction] = pixels
    assert counts.tolist() == metric.counts.tolist()


def test_an_image_without_a_labelled_pixel_is_not_wrong():
    truth = torch.full((2, 2), 255, dtype=torch.uint8)
    scores = MaskErrorAnalysis(NAMES).update([truth], mask_batch(masks=[truth], indices=torch.tensor([0])))
    assert (scores[0].error, scores[0].summary) == (0.0, "no labelled pixel")


def test_boxes_are_found_missed_and_false():
    """One found, one missed, one of another class, one too weak to be shown, and two in a crowd, which do not count."""
    boxes = np.array([[0, 0, 10, 10], [30, 0, 40, 10], [0, 30, 40, 50]], np.float32)
    truth = Instances((50, 50), boxes, np.array([0, 0, 1]), np.array([False, False, True]),
                      np.full(3, 100, np.float32), None)  # fmt: skip
    found = Detections(
        boxes=torch.tensor([[0, 0, 10, 9.0], [30, 0, 40, 10], [30, 0, 40, 10], [1, 31, 9, 40], [20, 31, 30, 40]]),
        scores=torch.tensor([0.9, 0.8, 0.2, 0.7, 0.6]),
        labels=torch.tensor([0, 2, 0, 1, 1]),
    )
    scores = BoxErrorAnalysis(NAMES).update([found], detection_batch(instances=[truth], indices=torch.tensor([4])))
    assert (scores[0].index, scores[0].summary) == (4, "1 of 2 objects found, 1 false")
    assert scores[0].outcome == "partly"
    assert scores[0].error == pytest.approx(1 - 2 * 1 / (2 * 1 + 1 + 1))


def test_every_detection_counts_however_many_there_are():
    """COCO's own limit is 100 for each image and class, `task.max_detections` may be more."""
    corners = torch.tensor([[10 * x, 10 * y] for x in range(10) for y in range(12)])
    boxes = torch.cat([corners, corners + 8], 1).float()
    count = len(boxes)
    truth = Instances((120, 120), boxes.numpy(), np.zeros(count, np.int64), np.zeros(count, bool),
                      np.full(count, 64, np.float32), None)  # fmt: skip
    found = Detections(
        boxes=boxes, scores=torch.linspace(0.9, 0.5, count), labels=torch.zeros(count, dtype=torch.int64)
    )
    scores = BoxErrorAnalysis(NAMES).update([found], detection_batch(instances=[truth], indices=torch.tensor([0])))
    assert (scores[0].error, scores[0].summary) == (0.0, "120 of 120 objects found, 0 false")
    assert scores[0].outcome == "right"


def test_precision_by_recall_has_the_metrics_area():
    scenes = made_scenes(1)
    analysis = BoxErrorAnalysis(CLASSES)
    for number, truth, found in scenes:
        analysis.update([found], detection_batch(instances=[truth], indices=torch.tensor([number])))
    curves = analysis.details()["precision"]
    expected = metric_of(scenes, masks=False).compute()
    assert np.mean(list(curves.values())) == pytest.approx(expected["val/box_ap50"])
    assert set(curves) == set(CLASSES[:4])  # of class 4 there is no object


def test_an_image_whose_objects_are_all_missed_is_wrong():
    box = np.array([[0, 0, 10, 10]], np.float32)
    truth = Instances((20, 20), box, np.array([0]), np.array([False]), np.full(1, 100, np.float32), None)
    nothing = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    (score,) = BoxErrorAnalysis(NAMES).update([nothing], detection_batch(instances=[truth], indices=torch.tensor([0])))
    assert (score.error, score.outcome) == (1.0, "wrong")


def test_images_without_objects_or_detections_are_judged():
    empty = Instances((20, 20), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool),
                      np.zeros(0, np.float32), None)  # fmt: skip
    nothing = Detections(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))
    analysis = BoxErrorAnalysis(NAMES)
    scores = analysis.update([nothing], detection_batch(instances=[empty], indices=torch.tensor([0])))
    assert (scores[0].error, scores[0].summary) == (0.0, "0 of 0 objects found, 0 false")
    assert scores[0].outcome == "right"
    assert analysis.details() == {"precision": {}}
