"""Per-sample statistics: each image's contribution to a metric, kept for the bootstrap over images."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.batch import BatchOfTask

Choice = NDArray[np.int64]
"""(n,) positions in `SampleStatistics.indices`; with replacement, so a position may occur several times."""


class SampleStatistics(Protocol):
    """The per-sample statistics of one metric of one model."""

    def update(self, predictions: Any, batch: BatchOfTask) -> None:
        """Add one batch, as to the task's metric."""

    @property
    def indices(self) -> list[int]:
        """Return the images' indices in their source, in the order that the positions of `Choice` refer to."""

    def metric(self, chosen: Choice) -> float:
        """Return the metric of the chosen images, 0 to 1; nan where they have no annotation.

        An image that is chosen twice counts twice.
        """
