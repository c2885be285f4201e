"""What each image adds to an average precision."""

from functools import cached_property
from typing import Any, Literal

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from scalablevit.tasks.detection.coco_metric import IOU_TYPES, CocoMetric, discard_report
from scalablevit.tasks.sample_statistics import Choice


class PrecisionStatistics(CocoMetric):
    """Detection: COCO's average precision.

    Detections are matched to truth once, image by image; only the accumulation over images is done for every choice.
    """

    def __init__(self, classes: tuple[str, ...], kind: Literal["box", "mask"]) -> None:
        super().__init__(classes, masks=kind == "mask")
        self.kind = kind

    @property
    def indices(self) -> list[int]:
        """Ascending."""
        return sorted(self.records)

    @cached_property
    def _matched(self) -> tuple[COCOeval_faster, list[Any]]:
        """The evaluation, and what it says of each image, class by class."""
        truth = COCO(self._truth())
        found = self._all_detections(self.kind, truth)
        evaluation = COCOeval_faster(
            truth, found, iouType=IOU_TYPES[self.kind], print_function=discard_report, separate_eval=True
        )
        limits = evaluation.params
        limits.areaRng, limits.areaRngLbl, limits.maxDets = limits.areaRng[:1], ["all"], limits.maxDets[-1:]
        evaluation.evaluate()
        return evaluation, list(evaluation._evalImgs_cpp)  # noqa: SLF001  # what its own accumulate() goes on from

    def metric(self, chosen: Choice) -> float:
        """Mean over thresholds, recalls and classes with truth."""
        evaluation, matched = self._matched
        count = len(self.records)
        evaluation._evalImgs_cpp = [  # noqa: SLF001
            matched[first + image] for first in range(0, len(matched), count) for image in chosen.tolist()
        ]
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])
        known = precision[precision > -1]
        return float(known.mean()) if known.size else float("nan")
