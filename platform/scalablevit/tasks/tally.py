"""What each image adds to a figure, kept apart, so that the figure of any choice of images can be told."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.labels import IGNORE
from scalablevit.data.loader import Batch
from scalablevit.tasks.detection.coco_metric import KINDS, CocoMetric, say_nothing

Choice = NDArray[np.int64]
"""Positions of images in the order in which they were added; an image may stand in it several times."""


class Tally(Protocol):
    """Of one figure of one model."""

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one batch, as to the task's metric."""

    @property
    def numbers(self) -> list[int]:
        """Of the images in their source, in the order that `figure` chooses from."""

    def figure(self, chosen: Choice) -> float:
        """The figure of as many images as were added, some of them several times, as a fraction; nan without truth."""


class HitTally:
    """Classification: whether the class is among the `top` most probable ones."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.numbers: list[int] = []
        self._hits: list[bool] = []

    def update(self, predictions: Tensor, batch: Batch) -> None:
        """Add logits (N, classes) against labels (N,)."""
        top = predictions.topk(self.top, dim=1).indices
        self._hits += (top == batch["label"][:, None]).any(dim=1).tolist()
        self.numbers += batch["index"].tolist()

    def figure(self, chosen: Choice) -> float:
        """The share of hits."""
        return float(np.array(self._hits)[chosen].mean())


class OverlapTally:
    """Segmentation: of each image the pixels of each class that were right, labelled and predicted.

    That is all of its confusion matrix that mIoU and the accuracies need.
    """

    def __init__(self, classes: int, figure: Literal["miou", "macc", "aacc"]) -> None:
        self.classes = classes
        self.kind = figure
        self.numbers: list[int] = []
        self._counts: list[NDArray[np.int64]] = []

    def update(self, predictions: list[Tensor], batch: Batch) -> None:
        """Add label maps (height, width) against `batch["mask"]`; pixels whose mask is 255 do not count."""
        for predicted, mask in zip(predictions, batch["mask"], strict=True):
            counted = mask != IGNORE
            truth, found = mask[counted].long(), predicted[counted].long()
            rows = [torch.bincount(each, minlength=self.classes) for each in (truth[truth == found], truth, found)]
            self._counts.append(torch.stack(rows).cpu().numpy())
        self.numbers += batch["index"].tolist()

    @cached_property
    def _flat(self) -> NDArray[np.float64]:
        return np.stack(self._counts).reshape(len(self._counts), -1).astype(np.float64)

    def figure(self, chosen: Choice) -> float:
        """Of the counts summed over the images, as `tasks.segmentation.confusion.ConfusionMetric` computes it."""
        times = np.bincount(chosen, minlength=len(self._flat)).astype(np.float64)
        hits, labelled, predicted = (times @ self._flat).reshape(3, self.classes)
        if not labelled.sum():
            return float("nan")
        if self.kind == "aacc":
            return float(hits.sum() / labelled.sum())
        whole = labelled + predicted - hits if self.kind == "miou" else labelled
        return float((hits[whole > 0] / whole[whole > 0]).mean())


class PrecisionTally(CocoMetric):
    """Detection: COCO's average precision.

    Detections are matched to truth once, image by image; only the accumulation over images is done for every choice.
    """

    def __init__(self, classes: tuple[str, ...], kind: Literal["box", "mask"]) -> None:
        super().__init__(classes, masks=kind == "mask")
        self.kind = kind

    @property
    def numbers(self) -> list[int]:
        """Ascending."""
        return sorted(self.records)

    @cached_property
    def _matched(self) -> tuple[COCOeval_faster, list[Any]]:
        """The evaluation, and what it says of each image, class by class."""
        truth = COCO(self._truth())
        found = self._found(self.kind, truth)
        evaluation = COCOeval_faster(
            truth, found, iouType=KINDS[self.kind], print_function=say_nothing, separate_eval=True
        )
        limits = evaluation.params
        limits.areaRng, limits.areaRngLbl, limits.maxDets = limits.areaRng[:1], ["all"], limits.maxDets[-1:]
        evaluation.evaluate()
        return evaluation, list(evaluation._evalImgs_cpp)  # noqa: SLF001  # what its own accumulate() goes on from

    def figure(self, chosen: Choice) -> float:
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


def build_tally(figure: str, classes: Sequence[str]) -> Tally:
    """The tally of a figure by its name in the recipe's `promotion.metric`."""
    match figure:
        case "top1" | "top5":
            return HitTally(int(figure.removeprefix("top")))
        case "miou" | "macc" | "aacc":
            return OverlapTally(len(classes), figure)
        case "box_ap" | "mask_ap":
            return PrecisionTally(tuple(classes), "box" if figure == "box_ap" else "mask")
    raise ValueError(f"no figure {figure!r}")
