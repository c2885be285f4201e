"""The classes of single images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.classification.task import ClassificationTask
from scalablevit.tasks.predictions import ClassificationPrediction


class ClassPredictor:
    """See `tasks.capabilities.Predictor`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = ClassificationTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> ClassificationPrediction:
        """Return the probabilities of all classes."""
        logits: Tensor = model(prepare_image(self._task.stage, image, device)).float()
        return ClassificationPrediction(self._task.classes, logits.softmax(dim=1)[0].cpu().numpy())
