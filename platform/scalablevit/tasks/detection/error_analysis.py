"""Error analysis of a detector: hits, misses and false detections in each image, and precision by recall."""

from collections.abc import Sequence

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.tasks.detection.coco_metric import IOU_TYPES, CocoMetric, Detections, discard_report
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome, SampleScore

OVERLAP = 0.5
"""A detection is right where its IoU with an object of its class is at least this, 0 to 1."""


class BoxErrorAnalysis(CocoMetric):
    """Error analysis by the F1 of each image's boxes; implements `tasks.error_analysis.ErrorAnalysis`.

    `details()["precision"]` holds by class name 101 precisions at recalls 0, 0.01, ... 1, at an IoU of `OVERLAP`;
    classes without annotated objects have none.
    """

    measure = f"by F1 of detections with a score of {SHOWN_SCORE} or more, at an overlap of {OVERLAP}, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(tuple(classes), masks=False)

    def update(self, predictions: list[Detections], batch: DetectionEvalBatch) -> list[SampleScore]:  # type: ignore[override]
        """Add images, as to `CocoMetric`; return the score of each image, 1 - F1."""
        super().update(predictions, batch)
        part = BoxErrorAnalysis(self.classes)
        CocoMetric.update(part, predictions, batch)
        evaluation = part._evaluate_boxes(most=max(len(detections.scores) for detections in predictions))
        return [_score(index, evaluation) for index in batch.indices.tolist()]

    def details(self) -> ErrorDetails:
        """Return precision by recall of each class, over all images."""
        # (thresholds, recalls, classes, areas, limits): of all but recalls and classes there is one
        precision = np.asarray(self._evaluate_boxes().eval["precision"])[0, :, :, 0, 0]
        known = {name: curve for name, curve in zip(self.classes, precision.T, strict=True) if (curve > -1).any()}
        return {"precision": {name: curve.tolist() for name, curve in known.items()}}

    def _evaluate_boxes(self, most: int | None = None) -> COCOeval_faster:
        """Return the evaluation of all images' boxes at an IoU of `OVERLAP`; a matched detection has `gt_id`.

        Args:
            most: detections of an image and class that count; None: COCO's 100.
        """
        ground_truth = COCO(self._ground_truth())
        detections = self._all_detections("box", ground_truth)
        evaluation = COCOeval_faster(
            ground_truth, detections, iouType=IOU_TYPES["box"], print_function=discard_report, extra_calc=True
        )
        params = evaluation.params
        params.iouThrs = np.array([OVERLAP])
        params.areaRng, params.areaRngLbl = params.areaRng[:1], ["all"]
        params.maxDets = params.maxDets[-1:] if most is None else [most]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def _score(index: int, evaluation: COCOeval_faster) -> SampleScore:
    """Return the score of one image of an evaluation; matches with a crowd are neither right nor wrong."""
    objects = {gt["id"]: gt for gt in evaluation.cocoGt.anns.values() if gt["image_id"] == index + 1}
    confident = [detection for detection in evaluation.cocoDt.anns.values()
                 if detection["image_id"] == index + 1 and detection["score"] >= SHOWN_SCORE]  # fmt: skip
    count = sum(not gt["iscrowd"] for gt in objects.values())
    hits = sum("gt_id" in detection and not objects[detection["gt_id"]]["iscrowd"] for detection in confident)
    false = sum("gt_id" not in detection for detection in confident)
    summary = f"{hits} of {count} objects found, {false} false"
    wrong = count - hits + false
    outcome: Outcome = "partly" if wrong and hits else "wrong" if wrong else "right"
    return SampleScore(index, wrong / (2 * hits + wrong) if wrong else 0.0, summary, outcome)
