"""Per-sample statistics of mIoU and pixel accuracies."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.data.labels import IGNORE
from scalablevit.tasks.sample_statistics import Choice


class OverlapStatistics:
    """Each image's numbers of right, labelled and predicted pixels by class; implements `SampleStatistics`.

    The metrics need no more of an image's confusion matrix. Call `update` only before the first `metric`.

    Args:
        num_classes: number of classes.
        metric_name: `miou`, `macc` or `aacc`, as in `tasks.segmentation.confusion.ConfusionMetric`.

    Raises:
        ValueError: another metric.
    """

    def __init__(self, num_classes: int, metric_name: str) -> None:
        if metric_name not in ("miou", "macc", "aacc"):
            raise ValueError(f"no metric {metric_name!r}")
        self._num_classes = num_classes
        self._metric_name = metric_name
        self.indices: list[int] = []
        self._counts: list[NDArray[np.int64]] = []

    def update(self, predictions: list[Tensor], batch: MaskBatch) -> None:
        """Add label maps (height, width) with `batch.masks`; pixels whose mask is 255 do not count."""
        for predicted, mask in zip(predictions, batch.masks, strict=True):
            counted = mask != IGNORE
            labels, predicted_labels = mask[counted].long(), predicted[counted].long()
            rows = [
                torch.bincount(values, minlength=self._num_classes)
                for values in (labels[labels == predicted_labels], labels, predicted_labels)
            ]
            self._counts.append(torch.stack(rows).cpu().numpy())
        self.indices += batch.indices.tolist()

    @cached_property
    def _flat(self) -> NDArray[np.float64]:
        """Return the counts, a row for each image: (images, 3 * classes)."""
        return np.stack(self._counts).reshape(len(self._counts), -1).astype(np.float64)

    def metric(self, chosen: Choice) -> float:
        """Return the metric of the counts summed over images, 0 to 1; nan where no pixel is labelled.

        Otherwise it is what `ConfusionMetric` computes, which refuses images without a labelled pixel.

        Args:
            chosen: (n,) positions in `indices`; an image that occurs twice counts twice.
        """
        weights = np.bincount(chosen, minlength=len(self._flat)).astype(np.float64)
        hit_pixels, labelled_pixels, predicted_pixels = (weights @ self._flat).reshape(3, self._num_classes)
        if not labelled_pixels.sum():
            return float("nan")
        if self._metric_name == "aacc":
            return float(hit_pixels.sum() / labelled_pixels.sum())
        divisors = labelled_pixels + predicted_pixels - hit_pixels if self._metric_name == "miou" else labelled_pixels
        return float((hit_pixels[divisors > 0] / divisors[divisors > 0]).mean())
