"""Per-sample statistics of top-k accuracy."""

import numpy as np
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.tasks.sample_statistics import Choice


class HitStatistics:
    """Whether each image's class is among its most probable ones; implements `SampleStatistics`.

    Args:
        top: how many of the most probable classes count, the k of top-k.
    """

    def __init__(self, top: int) -> None:
        self.top = top
        self.indices: list[int] = []
        self._hits: list[bool] = []

    def update(self, predictions: Tensor, batch: LabelBatch) -> None:
        """Add logits (N, classes) with labels (N,)."""
        top = predictions.topk(self.top, dim=1).indices
        self._hits += (top == batch.labels[:, None]).any(dim=1).tolist()
        self.indices += batch.indices.tolist()

    def metric(self, chosen: Choice) -> float:
        """Return the fraction of hits, 0 to 1."""
        return float(np.array(self._hits)[chosen].mean())
