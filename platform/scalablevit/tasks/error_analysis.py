"""What single images tell beyond a task's figures: how wrong each is, and what is taken for what."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Protocol

from scalablevit.data.loader import Batch


@dataclass(frozen=True)
class SampleScore:
    """One image."""

    number: int
    """In its source."""
    error: float
    """The larger, the worse."""
    words: str
    """What is right and wrong, for people."""


class ErrorAnalysis(Protocol):
    """Of one model, image by image."""

    measure: str
    """By what the worst come first, in words."""

    def update(self, predictions: Any, batch: Batch) -> list[SampleScore]:
        """Add one batch, as to the task's metric; its images in the batch's order."""

    def details(self) -> dict[str, Any]:
        """What all images together tell, as plain values."""


def triples(pairs: Counter[tuple[int, int]]) -> list[list[int]]:
    """Return [label, answer, count] by class numbers, sorted, of the pairs that occur."""
    return [[label, answer, count] for (label, answer), count in sorted(pairs.items())]
