"""What a kind of task can do besides training; a `TaskKind` builds each, and training itself needs none of it."""

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
"""Value of all pixels of blank images, 0 to 255."""


class Costs(Protocol):
    """Parameters and multiply-accumulates of a task's model, and blank batches to measure its steps and memory on."""

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width, in pixels, of the image that `count` counts for."""

    def count(self) -> Cost:
        """Return parameters and multiply-accumulates of a forward pass of one image of `size`."""

    def describe(self) -> str:
        """Return one line with `count`, and the paper's values where the paper has this model."""

    def blank_batch(self, samples: int) -> Batch:
        """Return a batch of grey uint8 images as large as training's, as the task's `collate` returns it."""

    def countable_loss(self, model: nn.Module, batch: BatchOfTask) -> Tensor:
        """Return a scalar loss that saves as much for its backward pass as the task's, and runs on fake tensors.

        Args:
            model: of the task's `build_model`.
            batch: of `blank_batch`, after the task's `prepare`.
        """


class Predictor(Protocol):
    """Predicts single images, for registered models and batch prediction."""

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> Prediction:
        """Return the prediction for a decoded image.

        Args:
            model: in eval mode; the caller disables gradients.
            image: uint8 (height, width, 3), RGB.
            device: the model's.
        """


@runtime_checkable
class BatchPredictor(Protocol):
    """An optional part of a `Predictor`: the images of one request share forward passes."""

    def predict_batch(
        self, model: nn.Module, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> Sequence[Prediction]:
        """Return what `predict` returns for each image, up to rounding.

        Args:
            model: in eval mode; the caller disables gradients.
            images: uint8 (height, width, 3) each, RGB, of any sizes.
            device: the model's.
        """


class Augmentation(Protocol):
    """Test-time augmentation, for recipes that ask for it."""

    @property
    def data(self) -> LabelledImages | MaskPairs | CocoInstances:
        """Return the data section whose images `predict` takes: the recipe's own, or one with larger images."""

    def predict(self, model: nn.Module, batch: BatchOfTask) -> Any:
        """Return predictions in the form of the task's own `predict`."""
