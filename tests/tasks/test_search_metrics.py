"""The metrics that a search may name are those that the tasks report."""

import numpy as np
import torch
from harness.batches import detection_batch, label_batch, mask_batch
from hotcoco import mask as run_lengths

from scalablevit.config.task_info import task_info
from scalablevit.data.instances import Instances
from scalablevit.tasks.classification.task import AccuracyMetric
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.coco_metric import CocoMetric
from scalablevit.tasks.segmentation.confusion import ConfusionMetric

CLASSES = ("a", "b", "c", "d", "e")


def over_all_classes(metrics: dict[str, float]) -> set[str]:
    """Without those of single classes and the number of samples."""
    return {name for name in metrics if name.count("/") == 1} - {"val/samples"}


def metrics_of(kind: str, head: str | None = None) -> set[str]:
    return {each.reported_as for each in task_info(kind).metrics_with([head])}


def test_classification() -> None:
    for classes in (5, 6):  # top-5 accuracy of five classes says nothing
        metric = AccuracyMetric(classes)
        metric.update(torch.eye(classes), label_batch(labels=torch.arange(classes)))
        expected = metrics_of("classification") - ({"val/top5"} if classes == 5 else set())
        assert over_all_classes(metric.compute()) == expected


def test_segmentation() -> None:
    metric = ConfusionMetric(CLASSES)
    mask = torch.arange(5, dtype=torch.uint8).repeat(3, 1)
    metric.update([mask], mask_batch(masks=[mask]))
    assert over_all_classes(metric.compute()) == metrics_of("segmentation", "upernet")


def test_detection() -> None:
    """One small, one medium and one large object, all found."""
    boxes = np.array([[0, 0, 20, 20], [30, 30, 90, 90], [100, 100, 250, 250]], np.float32)
    masks = np.zeros((256, 256, 3), np.uint8, order="F")
    for number, (left, top, right, bottom) in enumerate(boxes.astype(int)):
        masks[top:bottom, left:right, number] = 1
    lengths = list(run_lengths.encode(masks))
    areas = np.array([run_lengths.area(each) for each in lengths], np.float32)
    truth = Instances((256, 256), boxes, np.arange(3), np.zeros(3, bool), areas, lengths)
    found = Detections(
        boxes=torch.from_numpy(boxes),
        scores=torch.ones(3),
        labels=torch.arange(3),
        masks=lengths,
    )
    for with_masks in (True, False):
        metric = CocoMetric(CLASSES, masks=with_masks)
        metric.update([found], detection_batch(indices=torch.tensor([0]), instances=[truth]))
        expected = metrics_of("detection", "mask_rcnn" if with_masks else "retinanet")
        assert over_all_classes(metric.compute()) == expected
