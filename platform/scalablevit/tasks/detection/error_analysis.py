"""Error analysis of a detector: hits, misses and false detections in each image, and precision by recall."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
from hotcoco import StreamingEval

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.tasks.detection.coco_matching import (
    ClassMatches,
    Detections,
    add_images,
    add_to_stream,
    at_all_sizes,
    match,
    start_stream,
)
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome, SampleScore

OVERLAP = 0.5
"""A detection is right where its IoU with an object of its class is at least this, 0 to 1."""


class BoxErrorAnalysis:
    """Error analysis by the F1 of each image's boxes; implements `tasks.error_analysis.ErrorAnalysis`.

    `details()["precision"]` holds by class name 101 precisions at recalls 0, 0.01, ... 1, at an IoU of `OVERLAP`;
    classes without annotated objects have none.
    """

    measure = f"by F1 of detections with a score of {SHOWN_SCORE} or more, at an overlap of {OVERLAP}, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._images = set[int]()
        self._stream = start_stream(classes, "box", at_all_sizes("box", [OVERLAP]))

    def update(self, predictions: list[Detections], batch: DetectionEvalBatch) -> list[SampleScore]:
        """Add images, as to `CocoMetric`; return the score of each image, 1 - F1."""
        add_images(self._images, batch.indices.tolist())
        add_to_stream(self._stream, "box", predictions, batch)
        # all detections count, where the curves take COCO's 100 of an image and class
        most = max(len(detections.scores) for detections in predictions)
        by_image = defaultdict[int, list[ClassMatches]](list)
        for matches in match("box", predictions, batch, self.classes, at_all_sizes("box", [OVERLAP], most)):
            by_image[matches.image].append(matches)
        return [_score(index, by_image[index]) for index in batch.indices.tolist()]

    def details(self) -> ErrorDetails:
        """Return precision by recall of each class, over all images."""
        evaluation = StreamingEval.merge([self._stream]).finalize()
        evaluation.accumulate()
        # (thresholds, recalls, classes, areas, limits): of all but recalls and classes there is one
        precision = np.asarray((evaluation.eval or {})["precision"])[0, :, :, 0, 0]
        known = {name: curve for name, curve in zip(self.classes, precision.T, strict=True) if (curve > -1).any()}
        return {"precision": {name: curve.tolist() for name, curve in known.items()}}


def _score(index: int, classes: Iterable[ClassMatches]) -> SampleScore:
    """Return the score of one image; matches with a crowd are neither right nor wrong.

    Args:
        index: of the image in its source.
        classes: its matches at `OVERLAP`, class by class.
    """
    count = hits = false = 0
    for matches in classes:
        count += matches.objects
        confident = matches.scores >= SHOWN_SCORE
        hits += int((matches.matched & ~matches.ignored & confident).sum())
        false += int((~matches.matched & confident).sum())
    summary = f"{hits} of {count} objects found, {false} false"
    wrong = count - hits + false
    outcome: Outcome = "partly" if wrong and hits else "wrong" if wrong else "right"
    return SampleScore(index, wrong / (2 * hits + wrong) if wrong else 0.0, summary, outcome)
