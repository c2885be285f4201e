"""Per-sample statistics of average precision."""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from scalablevit.tasks.detection.coco_metric import IOU_TYPES, CocoMetric, discard_report
from scalablevit.tasks.sample_statistics import Choice


class PrecisionStatistics(CocoMetric):
    """Per-sample statistics of COCO's average precision; implements `tasks.sample_statistics.SampleStatistics`.

    Detections are matched to annotations once, image by image; only the accumulation over images is done for every
    choice.
    """

    def __init__(self, classes: tuple[str, ...], kind: Literal["box", "mask"]) -> None:
        super().__init__(classes, masks=kind == "mask")
        self.kind = kind

    @property
    def indices(self) -> list[int]:
        """Return the images' indices in their source, ascending."""
        return sorted(self.records)

    @cached_property
    def _evaluation(self) -> tuple[COCOeval_faster, list[Any]]:
        """Return the evaluation, and the matches of each image, class by class."""
        ground_truth = COCO(self._ground_truth())
        detections = self._all_detections(self.kind, ground_truth)
        evaluation = COCOeval_faster(
            ground_truth, detections, iouType=IOU_TYPES[self.kind], print_function=discard_report, separate_eval=True
        )
        params = evaluation.params
        params.areaRng, params.areaRngLbl, params.maxDets = params.areaRng[:1], ["all"], params.maxDets[-1:]
        evaluation.evaluate()
        return evaluation, list(evaluation._evalImgs_cpp)  # noqa: SLF001  # what its own accumulate() goes on from

    def metric(self, chosen: Choice) -> float:
        """Return the mean precision over IoU thresholds, recalls and classes, 0 to 1; nan without annotated objects."""
        evaluation, matches = self._evaluation
        count = len(self.records)
        evaluation._evalImgs_cpp = [  # noqa: SLF001
            matches[first + image] for first in range(0, len(matches), count) for image in chosen.tolist()
        ]
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])
        known = precision[precision > -1]
        return float(known.mean()) if known.size else float("nan")
