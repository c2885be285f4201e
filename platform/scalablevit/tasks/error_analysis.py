"""Error analysis image by image: how wrong each prediction is, and which class is taken for which."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

from scalablevit.data.batch import BatchOfTask

Outcome: TypeAlias = Literal["right", "partly", "wrong"]
"""What a prediction is as a whole; `TaskInfo.right_means` says it in words."""


@dataclass(frozen=True)
class SampleScore:
    """How wrong the prediction for one image is."""

    number: int
    """In its source."""
    error: float
    """The larger, the worse."""
    words: str
    """What is right and wrong, for people to read."""
    outcome: Outcome | None = None
    """None: not said, and then the report has no mark for it."""


class ErrorDetails(TypedDict, total=False):
    """What all images together show, each kind of task what it has; plain values, since it is kept as JSON."""

    confusions: list[list[int]]
    """[label, answer, count] by class numbers, those that occur."""
    precision: dict[str, list[float]]
    """By class name, precisions at recalls 0, 0.01, ... 1."""


class ErrorAnalysis(Protocol):
    """The errors of one model, image by image."""

    measure: str
    """How the worst are ranked, in words."""

    def update(self, predictions: Any, batch: BatchOfTask) -> list[SampleScore]:
        """Add one batch, as to the task's metric; return a score for each image, in the batch's order."""

    def details(self) -> ErrorDetails:
        """Return what all images together show."""


def triples(pairs: Counter[tuple[int, int]]) -> list[list[int]]:
    """Return [label, answer, count] by class numbers, sorted, of the pairs that occur."""
    return [[label, answer, count] for (label, answer), count in sorted(pairs.items())]
