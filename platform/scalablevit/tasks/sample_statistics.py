"""What each image adds to a figure, kept apart, so that the figure of any choice of images can be told."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.loader import Batch

Choice = NDArray[np.int64]
"""Positions of images in the order in which they were added; an image may stand in it several times."""


class SampleStatistics(Protocol):
    """Of one figure of one model."""

    def update(self, predictions: Any, batch: Batch) -> None:
        """Add one batch, as to the task's metric."""

    @property
    def numbers(self) -> list[int]:
        """Of the images in their source, in the order that `figure` chooses from."""

    def figure(self, chosen: Choice) -> float:
        """The figure of as many images as were added, some of them several times, as a fraction; nan without truth."""
