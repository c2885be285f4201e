"""Label maps of single images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.predictions import SegmentationPrediction
from scalablevit.tasks.segmentation.task import SegmentationTask


class MaskPredictor:
    """See `tasks.capabilities.Predictor`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = SegmentationTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> SegmentationPrediction:
        """Return the label map, at the image's own size."""
        prepared = prepare_image(self._task.stage, image, device)[0]
        labels = self._task.label_maps(model, [prepared], [(image.shape[0], image.shape[1])])[0]
        return SegmentationPrediction(self._task.classes, labels.cpu().numpy())
