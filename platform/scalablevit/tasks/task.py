"""What training needs of a task; what else a kind of task can do is in `tasks/capabilities.py`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from scalablevit.config.data import SplitName
from scalablevit.data.batch import Batch, BatchOfTask


class Metric(Protocol):
    """Metrics summed over batches and ranks, each sample counted exactly once."""

    def update(self, predictions: Any, batch: BatchOfTask) -> None:
        """Add one batch."""

    def synchronize(self) -> None:
        """Sum over all ranks, in place; every rank calls it, also one that saw no batch."""

    def compute(self) -> dict[str, float]:
        """Metrics by name (`val/...`); the task's `best_metric` is among them."""


class Task(Protocol):
    """Model, data, loss and metric of one kind of training.

    `build_model` returns a module whose single forward call per step goes through DistributedDataParallel, so
    `loss` calls `model(...)` exactly once and nothing else of it.
    """

    classes: tuple[str, ...]
    best_metric: str
    """Name of the metric that decides which checkpoint is best; larger is better."""
    one_size: bool
    """Whether all images that the model sees, in training and evaluation, have one size."""

    def build_model(self) -> nn.Module:
        """Backbone and head with fresh weights, drawn from torch's global generator."""

    def backbone(self, model: nn.Module) -> nn.Module:
        """The part of the model that initial weights go into: a classifier or a `models.backbone.Pyramid`."""

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Samples (also undecodable ones) to a batch."""

    def prepare(self, batch: BatchOfTask, split: SplitName, seed: Sequence[int]) -> Batch:
        """On the device: uint8 NHWC to normalised float NCHW; in training also mixing and erasing from `seed`."""

    def loss(self, model: nn.Module, batch: BatchOfTask) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch's samples (scalar), and detached scalars to report."""

    def predict(self, model: nn.Module, batch: BatchOfTask) -> Any:
        """Predictions for `metric().update`; called without gradients, in eval mode, under autocast."""

    def metric(self) -> Metric:
        """A fresh metric."""
