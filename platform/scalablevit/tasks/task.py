"""The part of a task that training needs; what else a kind of task can do is in `tasks/capabilities.py`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from scalablevit.config.data import SplitName
from scalablevit.data.batch import Batch, BatchOfTask


class Metric(Protocol):
    """Metrics summed over batches and ranks, each sample counted exactly once."""

    def update(self, predictions: Any, batch: BatchOfTask) -> None:
        """Add one batch.

        Args:
            predictions: what `Task.predict` returned for the batch.
            batch: prepared for evaluation.
        """

    def synchronize(self) -> None:
        """Sum over all ranks, in place; every rank calls it, also one that had no batch."""

    def compute(self) -> dict[str, float]:
        """Return metrics by name (`val/...`); the task's `best_metric` is among them."""


class Task(Protocol):
    """Model, data, loss and metric of one kind of training.

    `build_model` returns a module whose single forward call per step goes through DistributedDataParallel, so
    `loss` calls `model(...)` exactly once and nothing else of it.
    """

    classes: tuple[str, ...]
    """Names, in the order of the network's outputs."""
    best_metric: str
    """Name of the metric that decides which checkpoint is best; larger is better."""
    one_size: bool
    """Whether all images that the model sees, in training and evaluation, have one size."""

    def build_model(self) -> nn.Module:
        """Return backbone and head with fresh weights, drawn from torch's global generator."""

    def backbone(self, model: nn.Module) -> nn.Module:
        """Return the part of the model that initial weights go into: a classifier or a `models.backbone.Pyramid`."""

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Return the function that makes a batch of a list of samples, of which some may be `data.dataset.Bad`."""

    def prepare(self, batch: BatchOfTask, split: SplitName, seed: Sequence[int]) -> Batch:
        """Return the batch with normalized float images (N, 3, H, W), or a list of (3, H, W), on the batch's device.

        Args:
            batch: on the device, with uint8 images (N, H, W, 3), or a list of (H, W, 3).
            split: in training, images may also be mixed and erased.
            seed: decides all randomness.
        """

    def loss(self, model: nn.Module, batch: BatchOfTask) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss over the batch's samples (a scalar), and detached scalars to report, by name.

        A batch whose samples were all bad has blank images (of `capabilities.Costs.blank_batch`) and 0 `samples`: its
        loss must depend on the model's outputs as any other, and its value counts for nothing, also where it is not
        finite. (Only synchronized batch norm would carry a gradient that is not finite to other ranks.)
        """

    def predict(self, model: nn.Module, batch: BatchOfTask) -> Any:
        """Return predictions for `metric().update`; called without gradients, in eval mode, under autocast."""

    def metric(self) -> Metric:
        """Return a fresh metric."""
