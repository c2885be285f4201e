"""What a task is to the rest of the program."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.data import CocoInstances, LabelledImages, MaskPairs, SplitName
from scalablevit.data.loader import Batch
from scalablevit.models.counting import Cost
from scalablevit.tasks.predictions import Prediction

GREY = 128
"""Of blank images."""
NOTHING_LEFT_OUT: Batch = {"bad": [], "changed": []}
"""Of blank batches."""


class Metric(Protocol):
    """Metrics summed over batches and ranks, each sample counted exactly once."""

    def update(self, predictions: Any, batch: Batch) -> None:
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

    def cost(self) -> Cost:
        """Parameters and multiply-accumulates at the task's evaluation size."""

    @property
    def cost_size(self) -> tuple[int, int]:
        """Height and width of the image that `cost` is given for, pixels."""

    def cost_beside_paper(self) -> str:
        """One line with `cost`, and the paper's metrics where the paper has this model."""

    def collate(self, split: SplitName) -> Callable[[list[Any]], Batch]:
        """Samples (also undecodable ones) to a batch."""

    def prepare(self, batch: Batch, split: SplitName, seed: Sequence[int]) -> Batch:
        """On the device: uint8 NHWC to normalised float NCHW; in training also mixing and erasing from `seed`."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over the batch's samples (scalar), and detached scalars to report."""

    def blank_batch(self, samples: int) -> Batch:
        """Grey images as large as training's, as `collate` gives them: to time steps and count memory on."""

    def countable_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """A loss that keeps as much for its backward pass as `loss` and runs on fake tensors, which have no values."""

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Predictions for `metric().update` and `answer`; called without gradients, in eval mode, under autocast."""

    @property
    def augmented_data(self) -> LabelledImages | MaskPairs | CocoInstances:
        """The data section for `predict_augmented`: the recipe's own, or with larger images."""

    def predict_augmented(self, model: nn.Module, batch: Batch) -> Any:
        """As `predict`, with the recipe's test-time augmentation; without one the same as `predict`."""

    def metric(self) -> Metric:
        """A fresh metric."""

    def predict_image(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> Prediction:
        """Return the prediction for a decoded RGB image (height, width, 3); without gradients, in eval mode."""

    def answer(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> dict[str, Any]:
        """Return `predict_image` as plain values by column, as a registered model gives them."""
