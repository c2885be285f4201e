"""Error analysis of a detector: what it finds and misses in each image, and precision by recall."""

from collections.abc import Sequence

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.batch import InstanceBatch
from scalablevit.tasks.detection.coco_metric import IOU_TYPES, CocoMetric, Detections, discard_report
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome, SampleScore

OVERLAP = 0.5
"""Intersection over union from which on a detection is right."""


class BoxErrorAnalysis(CocoMetric):
    """Detection, by boxes.

    `details()["precision"]`: by class name 101 precisions at recalls 0, 0.01, ... 1, at an overlap of `OVERLAP`;
    classes without truth are left out.
    """

    measure = f"by F1 of detections with a score of {SHOWN_SCORE} or more, at an overlap of {OVERLAP}, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(tuple(classes), masks=False)

    def update(self, predictions: list[Detections], batch: InstanceBatch) -> list[SampleScore]:  # type: ignore[override]
        """Add images, as to `CocoMetric`."""
        super().update(predictions, batch)
        part = BoxErrorAnalysis(self.classes)
        CocoMetric.update(part, predictions, batch)
        matched = part._matched(most=max(len(each.scores) for each in predictions))
        return [_score(number, matched) for number in batch.index.tolist()]

    def details(self) -> ErrorDetails:
        """See the class."""
        # thresholds, recalls, classes, areas, limits: of all but recalls and classes there is one
        precision = np.asarray(self._matched().eval["precision"])[0, :, :, 0, 0]
        known = {name: curve for name, curve in zip(self.classes, precision.T, strict=True) if (curve > -1).any()}
        return {"precision": {name: curve.tolist() for name, curve in known.items()}}

    def _matched(self, most: int | None = None) -> COCOeval_faster:
        """All images, evaluated; their annotations and detections know of each other.

        Args:
            most: detections of an image and class that count; COCO's 100 by default.
        """
        truth = COCO(self._truth())
        found = self._all_detections("box", truth)
        evaluation = COCOeval_faster(
            truth, found, iouType=IOU_TYPES["box"], print_function=discard_report, extra_calc=True
        )
        limits = evaluation.params
        limits.iouThrs = np.array([OVERLAP])
        limits.areaRng, limits.areaRngLbl = limits.areaRng[:1], ["all"]
        limits.maxDets = limits.maxDets[-1:] if most is None else [most]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def _score(number: int, evaluation: COCOeval_faster) -> SampleScore:
    """Return the score of one image of an evaluation; what is in a crowd is neither right nor wrong."""
    objects = {each["id"]: each for each in evaluation.cocoGt.anns.values() if each["image_id"] == number + 1}
    shown = [each for each in evaluation.cocoDt.anns.values()
             if each["image_id"] == number + 1 and each["score"] >= SHOWN_SCORE]  # fmt: skip
    there = sum(not each["iscrowd"] for each in objects.values())
    hits = sum("gt_id" in each and not objects[each["gt_id"]]["iscrowd"] for each in shown)
    false = sum("gt_id" not in each for each in shown)
    words = f"{hits} of {there} objects found, {false} false"
    wrong = there - hits + false
    outcome: Outcome = "partly" if wrong and hits else "wrong" if wrong else "right"
    return SampleScore(number, wrong / (2 * hits + wrong) if wrong else 0.0, words, outcome)
