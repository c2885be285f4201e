"""A trained network, built from its recipe and loaded from safetensors: nothing is unpickled, no code is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.models.cpu_linear import evaluated_library, use_library
from scalablevit.tasks.capabilities import BatchPredictor, Predictor
from scalablevit.tasks.predictions import Prediction
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.task import Task

MAX_MESSAGE_CHARACTERS = 300
"""Most characters of torch's message on weights that do not fit, which names every tensor."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network ready to predict: in evaluation mode, on its device."""

    stage: Stage
    """The recipe's stage that it was trained by."""
    task: Task
    predictor: Predictor
    network: nn.Module
    device: torch.device

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for a decoded RGB image uint8 (height, width, 3); to be called without gradients."""
        return self.predictor.predict(self.network, image, self.device)

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[Prediction]:
        """Return the predictions for images, which share forward passes of the network where its task can do that.

        Args:
            images: RGB images uint8 (height, width, 3), in any sizes.
        """
        if isinstance(self.predictor, BatchPredictor):
            return self.predictor.predict_batch(self.network, images, self.device)
        return [self.predict(image) for image in images]  # a user's own task may predict single images only


def load_trained(
    stage: Stage, classes: Sequence[str], weights: str | Path, device: torch.device | None = None
) -> TrainedNetwork:
    """Build the stage's network and load all of its weights.

    Args:
        stage: the recipe's stage that the network was trained by.
        classes: class names, in the order of the network's outputs.
        weights: file `weights.safetensors`, whose SHA-256 the code that fetched it has checked.
        device: where the network goes; None: the first GPU, else the CPU.

    Raises:
        UserError: the weights belong to another network.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = build_task(stage, tuple(classes))
    network = task.build_model()
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit the network: {' '.join(str(error).split())[:MAX_MESSAGE_CHARACTERS]}",
            where=str(weights),
            fix="leave out overrides that change the network, such as those of the task's head and channels",
        ) from None
    use_library(network, evaluated_library(stage))
    predictor = task_kind(stage.task.kind).build_predictor(stage, task.classes)
    return TrainedNetwork(stage, task, predictor, network.to(device).eval(), device)
