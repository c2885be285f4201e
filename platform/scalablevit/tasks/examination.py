"""What single images tell beyond a task's figures: how wrong each is, and what is taken for what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch.nn.functional as F
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from scalablevit.config.task import SHOWN_SCORE, Classification, Detection, Segmentation, Task
from scalablevit.data.loader import Batch
from scalablevit.tasks.detection.coco_metric import KINDS, CocoMetric, say_nothing
from scalablevit.tasks.segmentation.confusion import pixels_by_pair

OVERLAP = 0.5
"""Intersection over union from which on a detection is right."""


@dataclass(frozen=True)
class Judged:
    """One image."""

    number: int
    """In its source."""
    error: float
    """The larger, the worse."""
    words: str
    """What is right and wrong, for people."""


class Examination(Protocol):
    """Of one model, image by image."""

    measure: str
    """By what the worst come first, in words."""

    def update(self, predictions: Any, batch: Batch) -> list[Judged]:
        """Add one batch, as to the task's metric; its images in the batch's order."""

    def details(self) -> dict[str, Any]:
        """What all images together tell, as plain values."""


class ClassExamination:
    """Classification.

    `details()["confusions"]`: [label, answer, images] by class numbers, those that occur.
    """

    measure = "by the cross-entropy of the label, the highest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: Tensor, batch: Batch) -> list[Judged]:
        """Add logits (N, classes) against labels (N,)."""
        labels = batch["label"]
        losses = F.cross_entropy(predictions, labels, reduction="none").tolist()
        shares, answers = predictions.softmax(dim=1).max(dim=1)
        judged = []
        for number, label, answer, share, loss in zip(
            batch["index"].tolist(), labels.tolist(), answers.tolist(), shares.tolist(), losses, strict=True
        ):
            self._pairs[label, answer] += 1
            words = f"label {self.classes[label]}, answer {self.classes[answer]} {share:.2f}; loss {loss:.2f}"
            judged.append(Judged(number, loss, words))
        return judged

    def details(self) -> dict[str, Any]:
        """See the class."""
        return {"confusions": _triples(self._pairs)}


class MaskExamination:
    """Segmentation.

    `details()["confusions"]`: [label, answer, pixels] by class numbers, those that occur.
    """

    measure = "by the mean IoU over the classes that an image shows or is said to show, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: list[Tensor], batch: Batch) -> list[Judged]:
        """Add label maps (height, width) against `batch["mask"]`; pixels whose mask is 255 do not count."""
        judged = []
        for number, predicted, mask in zip(batch["index"].tolist(), predictions, batch["mask"], strict=True):
            pixels = pixels_by_pair(mask, predicted, len(self.classes))
            met = pixels.nonzero().tolist()
            pairs = Counter({(label, answer): int(pixels[label, answer]) for label, answer in met})
            self._pairs += pairs
            judged.append(self._judged(number, pairs))
        return judged

    def details(self) -> dict[str, Any]:
        """See the class."""
        return {"confusions": _triples(self._pairs)}

    def _judged(self, number: int, pairs: Counter[tuple[int, int]]) -> Judged:
        """From the pixels of each pair of label and answer."""
        overlaps = {}
        for number_of_class in {each for pair in pairs for each in pair}:
            whole = sum(count for pair, count in pairs.items() if number_of_class in pair)
            overlaps[number_of_class] = pairs[number_of_class, number_of_class] / whole
        if not overlaps:
            return Judged(number, 0.0, "no labelled pixel")
        mean = sum(overlaps.values()) / len(overlaps)
        worst = min(overlaps, key=overlaps.__getitem__)
        words = f"mean IoU {mean:.2f} over {len(overlaps)} classes; lowest {self.classes[worst]} {overlaps[worst]:.2f}"
        return Judged(number, 1 - mean, words)


class BoxExamination(CocoMetric):
    """Detection, by boxes.

    `details()["precision"]`: by class name 101 precisions at recalls 0, 0.01, ... 1, at an overlap of `OVERLAP`;
    classes without truth are left out.
    """

    measure = f"by F1 of detections with a score of {SHOWN_SCORE} or more, at an overlap of {OVERLAP}, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(tuple(classes), masks=False)

    def update(self, predictions: list[dict[str, Any]], batch: Batch) -> list[Judged]:  # type: ignore[override]
        """Add images, as to `CocoMetric`."""
        super().update(predictions, batch)
        part = BoxExamination(self.classes)
        CocoMetric.update(part, predictions, batch)
        matched = part._matched(most=max(len(each["scores"]) for each in predictions))
        return [_judged(number, matched) for number in batch["index"].tolist()]

    def details(self) -> dict[str, Any]:
        """See the class."""
        # thresholds, recalls, classes, areas, limits: of all but recalls and classes there is one
        precision = np.asarray(self._matched().eval["precision"])[0, :, :, 0, 0]
        known = {name: curve for name, curve in zip(self.classes, precision.T, strict=True) if (curve > -1).any()}
        return {"precision": {name: curve.tolist() for name, curve in known.items()}}

    def _matched(self, most: int | None = None) -> COCOeval_faster:
        """All images, evaluated; their annotations and detections know of each other.

        Args:
            most: detections of an image and class that count; COCO's 100 by default.
        """
        truth = COCO(self._truth())
        found = self._found("box", truth)
        evaluation = COCOeval_faster(truth, found, iouType=KINDS["box"], print_function=say_nothing, extra_calc=True)
        limits = evaluation.params
        limits.iouThrs = np.array([OVERLAP])
        limits.areaRng, limits.areaRngLbl = limits.areaRng[:1], ["all"]
        limits.maxDets = limits.maxDets[-1:] if most is None else [most]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def build_examination(task: Task, classes: Sequence[str]) -> Examination:
    """The examination of a recipe's task."""
    match task:
        case Classification():
            return ClassExamination(classes)
        case Segmentation():
            return MaskExamination(classes)
        case Detection():
            return BoxExamination(classes)


def _judged(number: int, evaluation: COCOeval_faster) -> Judged:
    """One image of an evaluation; what lies in a crowd is neither right nor wrong."""
    objects = {each["id"]: each for each in evaluation.cocoGt.anns.values() if each["image_id"] == number + 1}
    shown = [each for each in evaluation.cocoDt.anns.values()
             if each["image_id"] == number + 1 and each["score"] >= SHOWN_SCORE]  # fmt: skip
    there = sum(not each["iscrowd"] for each in objects.values())
    hits = sum("gt_id" in each and not objects[each["gt_id"]]["iscrowd"] for each in shown)
    false = sum("gt_id" not in each for each in shown)
    words = f"{hits} of {there} objects found, {false} false"
    wrong = there - hits + false
    return Judged(number, wrong / (2 * hits + wrong) if wrong else 0.0, words)


def _triples(pairs: Counter[tuple[int, int]]) -> list[list[int]]:
    return [[label, answer, count] for (label, answer), count in sorted(pairs.items())]
