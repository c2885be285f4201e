"""What each image adds to mIoU and the accuracies of pixels."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.data.labels import IGNORE
from scalablevit.tasks.sample_statistics import Choice


class OverlapStatistics:
    """Segmentation: of each image the pixels of each class that were right, labelled and predicted.

    That is all of its confusion matrix that mIoU and the accuracies need.
    """

    def __init__(self, classes: int, metric: str) -> None:
        if metric not in ("miou", "macc", "aacc"):
            raise ValueError(f"no metric {metric!r}")
        self.classes = classes
        self.kind = metric
        self.indices: list[int] = []
        self._counts: list[NDArray[np.int64]] = []

    def update(self, predictions: list[Tensor], batch: MaskBatch) -> None:
        """Add label maps (height, width) against `batch.mask`; pixels whose mask is 255 do not count."""
        for predicted, mask in zip(predictions, batch.mask, strict=True):
            counted = mask != IGNORE
            truth, found = mask[counted].long(), predicted[counted].long()
            rows = [torch.bincount(each, minlength=self.classes) for each in (truth[truth == found], truth, found)]
            self._counts.append(torch.stack(rows).cpu().numpy())
        self.indices += batch.index.tolist()

    @cached_property
    def _flat(self) -> NDArray[np.float64]:
        return np.stack(self._counts).reshape(len(self._counts), -1).astype(np.float64)

    def metric(self, chosen: Choice) -> float:
        """Of the counts summed over the images, as `tasks.segmentation.confusion.ConfusionMetric` computes it."""
        times = np.bincount(chosen, minlength=len(self._flat)).astype(np.float64)
        hits, labelled, predicted = (times @ self._flat).reshape(3, self.classes)
        if not labelled.sum():
            return float("nan")
        if self.kind == "aacc":
            return float(hits.sum() / labelled.sum())
        whole = labelled + predicted - hits if self.kind == "miou" else labelled
        return float((hits[whole > 0] / whole[whole > 0]).mean())
