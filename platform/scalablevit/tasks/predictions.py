"""A trained model's prediction for one image, by the kind of task: arrays for Python, plain values for JSON."""

from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from scalablevit.data.instances import RunLengths, decode_masks
from scalablevit.tasks.output import PredictionDict

TOP_K = 5
"""Most classes in a classifier's `to_dict()`, most probable first."""


@dataclass(frozen=True, eq=False)
class ClassificationPrediction:
    """The probability of each class."""

    classes: tuple[str, ...]
    """Names, in the order of the network's outputs."""
    probabilities: NDArray[np.float32]
    """(classes,), 0 to 1; their sum is 1."""

    @property
    def label(self) -> str:
        """Return the name of the most probable class."""
        return next(iter(self.top(1)))

    @property
    def probability(self) -> float:
        """Return the probability of the most probable class, 0 to 1."""
        return next(iter(self.top(1).values()))

    def top(self, count: int) -> dict[str, float]:
        """Return the probabilities of the `count` most probable classes by name, most probable first."""
        # torch's order of equal ones, which is not NumPy's
        values, indices = torch.from_numpy(self.probabilities).topk(min(count, len(self.classes)))
        return {self.classes[i]: p for i, p in zip(indices.tolist(), values.tolist(), strict=True)}

    def to_dict(self) -> PredictionDict:
        """Return plain values.

        Returns:
            `class`: name of the most probable class; `probability`: its probability; `probabilities`: those of the
            `TOP_K` most probable classes by name.
        """
        top = self.top(TOP_K)
        best = next(iter(top))
        return {"class": best, "probability": top[best], "probabilities": top}


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """The class of each pixel."""

    classes: tuple[str, ...]
    """Names, by class index from 0."""
    mask: NDArray[np.uint8]
    """Class indices (height, width), at the size of the given image."""

    @property
    def shares(self) -> dict[str, float]:
        """Return the fraction of the pixels, 0 to 1, of each class that occurs, by name, largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
        return {self.classes[index]: int(counts[index]) / self.mask.size for index in order}

    def to_dict(self) -> PredictionDict:
        """Return plain values.

        Returns:
            `mask_png`: bytes of an 8-bit greyscale PNG of the image's size, each pixel the index of its class in
            `classes` of this prediction, from 0; `classes`: names of the classes that occur, largest first; `shares`:
            the fraction of the pixels of each, in the same order (in pandas,
            `predictions.explode(["classes", "shares"])` is a tidy table).
        """
        shares = self.shares
        png = cv2.imencode(".png", self.mask)[1].tobytes()
        return {"mask_png": png, "classes": list(shares), "shares": list(shares.values())}


@dataclass(frozen=True, eq=False)
class DetectionPrediction:
    """The objects in an image, best first."""

    classes: tuple[str, ...]
    """Names, by class index from 0."""
    boxes: NDArray[np.float32]
    """(n, 4): x1, y1, x2, y2 in pixels of the given image."""
    scores: NDArray[np.float32]
    """(n,), 0 to 1, in descending order."""
    labels: NDArray[np.int64]
    """(n,): class indices from 0."""
    masks_rle: tuple[RunLengths, ...] | None
    """n masks as COCO's compressed run lengths, {"size": [height, width], "counts": text}; None: boxes only."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each object's class."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the mask of object `index`, bool (height, width), at the size of the given image.

        All masks of an image at once may take gigabytes, so each is decoded when it is asked for.

        Raises:
            ValueError: the model finds boxes only.
        """
        if self.masks_rle is None:
            raise ValueError("this model finds boxes without masks; task.head mask_rcnn finds both")
        mask = self.masks_rle[index]
        decoded: NDArray[np.bool_] = decode_masks([mask], (mask["size"][0], mask["size"][1]))[0].astype(np.bool_)
        return decoded

    def to_dict(self) -> PredictionDict:
        """Return plain values.

        Returns:
            `boxes`: [x1, y1, x2, y2] in the image's pixels; `scores`: 0 to 1; `labels`: names of the classes; of
            Mask R-CNN also `masks`: COCO's compressed run lengths, {"size": [height, width], "counts": text}.
        """
        values: PredictionDict = {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": list(self.names),
        }
        if self.masks_rle is not None:
            values["masks"] = list(self.masks_rle)
        return values


Prediction: TypeAlias = ClassificationPrediction | SegmentationPrediction | DetectionPrediction
