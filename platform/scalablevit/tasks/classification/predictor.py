"""Prediction of single images' classes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.classification.task import ClassificationTask
from scalablevit.tasks.passes import run_in_passes
from scalablevit.tasks.predictions import ClassificationPrediction


class ClassPredictor:
    """Predicts the classes of images; implements `Predictor` and `BatchPredictor` of `tasks.capabilities`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = ClassificationTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> ClassificationPrediction:
        """Return the probabilities of all classes for an image uint8 (height, width, 3), RGB."""
        return self.predict_batch(model, [image], device)[0]

    def predict_batch(
        self, model: nn.Module, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> list[ClassificationPrediction]:
        """Return the probabilities of all classes for each image uint8 (height, width, 3), RGB.

        Images of equal size after preparation share forward passes.
        """
        task = self._task

        def run(batch: Tensor) -> list[NDArray[np.float32]]:
            logits: Tensor = model(batch)
            return list(logits.float().softmax(dim=1).cpu().numpy())

        prepared = [prepare_image(task.stage, image, device) for image in images]
        probabilities = run_in_passes(prepared, run)
        return [ClassificationPrediction(task.classes, of_image) for of_image in probabilities]
