"""What each image adds to an accuracy."""

import numpy as np
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.tasks.sample_statistics import Choice


class HitStatistics:
    """Classification: whether the class is among the `top` most probable ones."""

    def __init__(self, top: int) -> None:
        self.top = top
        self.indices: list[int] = []
        self._hits: list[bool] = []

    def update(self, predictions: Tensor, batch: LabelBatch) -> None:
        """Add logits (N, classes) against labels (N,)."""
        top = predictions.topk(self.top, dim=1).indices
        self._hits += (top == batch.label[:, None]).any(dim=1).tolist()
        self.indices += batch.index.tolist()

    def metric(self, chosen: Choice) -> float:
        """The share of hits."""
        return float(np.array(self._hits)[chosen].mean())
