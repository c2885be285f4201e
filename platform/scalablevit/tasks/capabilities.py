"""What a kind of task can do beside training, each found by its `TaskKind`: training itself needs none of it."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.data import CocoInstances, LabelledImages, MaskPairs
from scalablevit.data.batch import Batch, BatchOfTask
from scalablevit.models.counting import Cost
from scalablevit.tasks.predictions import Prediction

GREY = 128
"""Of blank images."""


class Costs(Protocol):
    """What a model of the task costs, and blank batches to time its steps and count its memory on."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width of the image that `count` is given for, pixels."""

    def count(self) -> Cost:
        """Return parameters and multiply-accumulates of one image of `size`."""

    def describe(self) -> str:
        """Return one line with `count`, and the paper's values where the paper has this model."""

    def blank_batch(self, samples: int) -> Batch:
        """Return grey images as large as training's, as the task's `collate` gives them."""

    def countable_loss(self, model: nn.Module, batch: BatchOfTask) -> Tensor:
        """Return a loss that keeps as much for its backward pass as the task's, and runs on fake tensors."""


class Predictor(Protocol):
    """Predictions for single images, as registered models and batch prediction give them."""

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> Prediction:
        """Return the prediction for a decoded RGB image (height, width, 3); without gradients, in eval mode."""


@runtime_checkable
class BatchPredictor(Protocol):
    """What a `Predictor` may have besides, so that the images of one request share passes of the network."""

    def predict_batch(
        self, model: nn.Module, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> Sequence[Prediction]:
        """Return what `predict` returns for each decoded image, in their order and up to rounding."""


class Augmentation(Protocol):
    """Test-time augmentation of a recipe that asks for it."""

    @property
    def data(self) -> LabelledImages | MaskPairs | CocoInstances:
        """Return the data section for `predict`: the recipe's own, or with larger images."""

    def predict(self, model: nn.Module, batch: BatchOfTask) -> Any:
        """Return predictions as the task's `predict` does."""
