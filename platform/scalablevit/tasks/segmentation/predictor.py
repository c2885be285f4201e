"""Prediction of single images' label maps."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.predictions import SegmentationPrediction
from scalablevit.tasks.segmentation.task import SegmentationTask


class MaskPredictor:
    """Predicts label maps of images; implements `Predictor` and `BatchPredictor` of `tasks.capabilities`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = SegmentationTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> SegmentationPrediction:
        """Return the label map of an image uint8 (height, width, 3), RGB, at the image's own size."""
        return self.predict_batch(model, [image], device)[0]

    def predict_batch(
        self, model: nn.Module, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> list[SegmentationPrediction]:
        """Return the label map of each image uint8 (height, width, 3), RGB, at the image's own size.

        Images of equal size after preparation share forward passes.
        """
        task = self._task
        prepared = [prepare_image(task.stage, image, device)[0] for image in images]
        maps = task.label_maps(model, prepared, [(image.shape[0], image.shape[1]) for image in images])
        return [SegmentationPrediction(task.classes, labels.cpu().numpy()) for labels in maps]
