"""Error analysis image by image: how wrong each prediction is, and which class is taken for which."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from scalablevit.data.batch import BatchOfTask

Outcome: TypeAlias = Literal["right", "partly", "wrong"]
"""Verdict on a prediction as a whole; `TaskInfo.right_means` defines it for each kind of task."""


@dataclass(frozen=True)
class SampleScore:
    """How wrong the prediction for one image is."""

    index: int
    """Index of the image in its source."""
    error: float
    """0 where nothing is wrong; the larger, the worse."""
    summary: str
    """What is right and wrong, for people to read."""
    outcome: Outcome | None = None
    """None: no verdict, and the report marks nothing."""


class ErrorDetails(TypedDict, total=False):
    """Errors over all images, as plain values for JSON. Each kind of task fills the keys that apply to it."""

    confusions: list[list[int]]
    """[label, prediction, count] by class indices, pairs that occur; images or pixels are counted."""
    precision: dict[str, list[float]]
    """By class name, 101 precisions at recalls 0, 0.01, ... 1."""


class ErrorAnalysis(Protocol):
    """The errors of one model, image by image."""

    measure: str
    """How the worst images are ranked, for people to read."""

    def update(self, predictions: Any, batch: BatchOfTask) -> list[SampleScore]:
        """Add one batch, as to the task's metric; return a score for each image, in the batch's order."""

    def details(self) -> ErrorDetails:
        """Return the errors over all images that were added."""


def confusion_triples(pairs: Counter[tuple[int, int]]) -> list[list[int]]:
    """Return [label, prediction, count] by class indices, sorted, of the pairs (label, prediction) that occur."""
    return [[label, predicted, count] for (label, predicted), count in sorted(pairs.items())]
