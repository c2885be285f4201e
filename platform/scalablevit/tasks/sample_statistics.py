"""Per-sample statistics: what each image adds to a metric, kept apart for the bootstrap over images."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.batch import BatchOfTask

Choice = NDArray[np.int64]
"""Positions of images in the order in which they were added; an image may be in it several times."""


class SampleStatistics(Protocol):
    """The per-sample statistics of one metric of one model."""

    def update(self, predictions: Any, batch: BatchOfTask) -> None:
        """Add one batch, as to the task's metric."""

    @property
    def indices(self) -> list[int]:
        """Numbers of the images in their source, in the order that `metric` chooses from."""

    def metric(self, chosen: Choice) -> float:
        """Return the metric of the chosen images as a fraction; one chosen twice counts twice; nan without truth."""
