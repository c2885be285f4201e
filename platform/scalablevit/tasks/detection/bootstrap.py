"""Per-sample statistics of average precision."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from hotcoco.metrics import average_precision
from numpy.typing import NDArray

from scalablevit.data.batch import DetectionEvalBatch
from scalablevit.tasks.detection.coco_matching import ClassMatches, Detections, Kind, add_images, at_all_sizes, match
from scalablevit.tasks.sample_statistics import Choice


@dataclass(frozen=True, slots=True)
class _Table:
    """All detections of one class, image by image, n in i images, at t overlaps."""

    objects: NDArray[np.int64]
    """(i,) annotated objects of each image, crowds not counted."""
    counts: NDArray[np.int64]
    """(i,) detections of each image."""
    starts: NDArray[np.int64]
    """(i,) column of each image's first detection."""
    scores: NDArray[np.float64]
    """(n,)"""
    matched: NDArray[np.bool_]
    """(t, n)"""
    ignored: NDArray[np.bool_]
    """(t, n)"""

    def precisions(self, chosen: Choice) -> list[float]:
        """Return the average precision at each overlap; none where no object is annotated."""
        objects = int(self.objects[chosen].sum())
        if not objects:
            return []
        counts = self.counts[chosen]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = np.repeat(self.starts[chosen], counts) + within
        scores = self.scores[columns]
        return [
            average_precision(scores, matched[columns], objects, ignored[columns])
            for matched, ignored in zip(self.matched, self.ignored, strict=True)
        ]


class PrecisionStatistics:
    """Per-sample statistics of COCO's average precision; implements `tasks.sample_statistics.SampleStatistics`.

    Detections are matched to annotations once, image by image; only the accumulation over images is done for every
    choice.
    """

    def __init__(self, classes: tuple[str, ...], kind: Kind) -> None:
        self.classes = classes
        self.kind = kind
        self._images = set[int]()
        self._matches: list[list[ClassMatches]] = [[] for _ in classes]

    def update(self, predictions: list[Detections], batch: DetectionEvalBatch) -> None:
        """Add images, as to `CocoMetric`."""
        add_images(self._images, batch.indices.tolist())
        for matches in match(self.kind, predictions, batch, self.classes, at_all_sizes(self.kind)):
            self._matches[matches.label].append(matches)

    @property
    def indices(self) -> list[int]:
        """Return the images' indices in their source, ascending."""
        return sorted(self._images)

    def metric(self, chosen: Choice) -> float:
        """Return the mean precision over IoU thresholds, recalls and classes, 0 to 1; nan without annotated objects."""
        precisions = [precision for table in self._tables for precision in table.precisions(chosen)]
        return float(np.mean(precisions)) if precisions else float("nan")

    @cached_property
    def _tables(self) -> list[_Table]:
        indices = np.array(self.indices)
        return [_to_table(sorted(of_class, key=lambda m: m.image), indices) for of_class in self._matches if of_class]


def _to_table(matches: list[ClassMatches], indices: NDArray[np.int64]) -> _Table:
    """Return one class's matches as a table, of images in ascending order."""
    objects, counts = np.zeros((2, len(indices)), np.int64)
    positions = np.searchsorted(indices, [of_image.image for of_image in matches])
    objects[positions] = [of_image.objects for of_image in matches]
    counts[positions] = [len(of_image.scores) for of_image in matches]
    return _Table(
        objects,
        counts,
        np.cumsum(counts) - counts,
        np.concatenate([of_image.scores for of_image in matches]),
        np.concatenate([of_image.matched for of_image in matches], axis=1),
        np.concatenate([of_image.ignored for of_image in matches], axis=1),
    )
