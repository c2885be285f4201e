"""A trained network, built from its recipe and filled from safetensors: nothing is unpickled, no code is fetched."""

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
from scalablevit.tasks.capabilities import BatchPredictor, Predictor
from scalablevit.tasks.predictions import Prediction
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.task import Task

MAX_MESSAGE_CHARACTERS = 300
"""Characters of torch's list of what does not fit, which names every tensor."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A network ready to answer: in evaluation mode, on its device."""

    stage: Stage
    task: Task
    predictor: Predictor
    network: nn.Module
    device: torch.device

    def predict(self, image: NDArray[np.uint8]) -> Prediction:
        """Return the prediction for a decoded RGB image (height, width, 3); called without gradients."""
        return self.predictor.predict(self.network, image, self.device)

    def predict_batch(self, images: Sequence[NDArray[np.uint8]]) -> Sequence[Prediction]:
        """Return the prediction for each of some images, which share passes of the network where its task can do that.

        Args:
            images: as for `predict`, in any sizes.
        """
        if isinstance(self.predictor, BatchPredictor):
            return self.predictor.predict_batch(self.network, images, self.device)
        return [self.predict(image) for image in images]  # a users' own task may know single images alone


def load_trained(
    stage: Stage, classes: Sequence[str], weights: str | Path, device: torch.device | None = None
) -> TrainedNetwork:
    """Build the stage's network and give it all of its weights.

    Args:
        stage: the recipe's stage that it was trained by.
        classes: names, in the order of the network's outputs.
        weights: `weights.safetensors`, whose sum was checked by whoever fetched it.
        device: None: the first GPU, or else the CPU.

    Raises:
        UserError: the weights are of another network.
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
    predictor = task_kind(stage.task.kind).build_predictor(stage, task.classes)
    return TrainedNetwork(stage, task, predictor, network.to(device).eval(), device)
