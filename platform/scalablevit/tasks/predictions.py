"""What a trained model says of one image, by the kind of task: arrays for Python, plain values for tables and JSON."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from scalablevit.tasks.output import Answer

if TYPE_CHECKING:  # it loads COCO's library, and workers pay for imports
    from scalablevit.data.instances import RunLengths

ANSWERED_CLASSES = 5
"""Classes that a served model names, most probable first."""


@dataclass(frozen=True, eq=False)
class ClassificationPrediction:
    """How probable each class is."""

    classes: tuple[str, ...]
    """Names, in the order of the network's outputs."""
    probabilities: NDArray[np.float32]
    """(classes,), their sum is 1."""

    @property
    def label(self) -> str:
        """Name of the most probable class."""
        return next(iter(self.top(1)))

    @property
    def probability(self) -> float:
        """Of the most probable class."""
        return next(iter(self.top(1).values()))

    def top(self, count: int) -> dict[str, float]:
        """Return the probabilities of the `count` most probable classes by name, most probable first."""
        # torch's order of equal ones, which is not NumPy's
        values, indices = torch.from_numpy(self.probabilities).topk(min(count, len(self.classes)))
        return {self.classes[i]: p for i, p in zip(indices.tolist(), values.tolist(), strict=True)}

    def answer(self) -> Answer:
        """Return `class`, `probability`, and `probabilities` of the most probable classes by name."""
        top = self.top(ANSWERED_CLASSES)
        best = next(iter(top))
        return {"class": best, "probability": top[best], "probabilities": top}


@dataclass(frozen=True, eq=False)
class SegmentationPrediction:
    """The class of each pixel."""

    classes: tuple[str, ...]
    """Names, by class number from 0."""
    mask: NDArray[np.uint8]
    """Class numbers (height, width), at the size of the image as given."""

    @property
    def shares(self) -> dict[str, float]:
        """Fraction of the pixels of each class that occurs, by name, largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=len(self.classes))
        order = [int(number) for number in np.argsort(-counts, kind="stable") if counts[number]]
        return {self.classes[number]: int(counts[number]) / self.mask.size for number in order}

    def answer(self) -> Answer:
        """Return plain values.

        Returns:
            `mask_png`: bytes of an 8-bit greyscale PNG of the image's size, each pixel the number of its class in the
            recipe's list, from 0; `classes`: names of the classes that occur, largest first; `shares`: the fraction of
            the pixels of each, in the same order (in pandas, `answers.explode(["classes", "shares"])` is a tidy table).
        """
        shares = self.shares
        png = cv2.imencode(".png", self.mask)[1].tobytes()
        return {"mask_png": png, "classes": list(shares), "shares": list(shares.values())}


@dataclass(frozen=True, eq=False)
class DetectionPrediction:
    """The objects in an image, best first."""

    classes: tuple[str, ...]
    """Names, by class number from 0."""
    boxes: NDArray[np.float32]
    """(n, 4): x1, y1, x2, y2 in pixels of the image as given."""
    scores: NDArray[np.float32]
    """(n,), in 0..1, falling."""
    labels: NDArray[np.int64]
    """(n,): class numbers."""
    masks_rle: tuple["RunLengths", ...] | None
    """Of Mask R-CNN, for each object COCO's compressed run lengths, {"size": [height, width], "counts": text}."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each object's class."""
        return tuple(self.classes[label] for label in self.labels.tolist())

    def mask(self, number: int) -> NDArray[np.bool_]:
        """Return the mask of an object, bool (height, width) of the image as given.

        All masks of an image at once may take gigabytes, so each is decoded when it is asked for.

        Raises:
            ValueError: the model finds boxes only.
        """
        if self.masks_rle is None:
            raise ValueError("this model finds boxes without masks; task.head mask_rcnn finds both")
        from faster_coco_eval import mask as run_lengths  # imported late: workers pay for imports

        decoded: NDArray[np.uint8] = run_lengths.decode(self.masks_rle[number])
        return decoded.astype(np.bool_)

    def answer(self) -> Answer:
        """Return plain values.

        Returns:
            `boxes`: [x1, y1, x2, y2] in the image's pixels; `scores`; `labels`: names of the classes; of Mask R-CNN
            also `masks`: COCO's compressed run lengths, {"size": [height, width], "counts": text}.
        """
        answer: Answer = {
            "boxes": self.boxes.tolist(),
            "scores": self.scores.tolist(),
            "labels": list(self.names),
        }
        if self.masks_rle is not None:
            answer["masks"] = list(self.masks_rle)
        return answer


Prediction: TypeAlias = ClassificationPrediction | SegmentationPrediction | DetectionPrediction
