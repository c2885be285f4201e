"""Detections in single images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scalablevit.config.recipe import Stage
from scalablevit.data.instances import RunLengths
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.detection.task import DetectionTask
from scalablevit.tasks.predictions import DetectionPrediction


class DetectionPredictor:
    """See `tasks.capabilities.Predictor`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = DetectionTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> DetectionPrediction:
        """Return the detections, best first, in the image's own pixels."""
        prepared = prepare_image(self._task.stage, image, device)[0]
        found = self._task.in_original(model([prepared])[0], prepared, (image.shape[0], image.shape[1]))
        masks: tuple[RunLengths, ...] = tuple(
            {"size": list(m["size"]), "counts": _text(m["counts"])} for m in found.masks or ()
        )
        return DetectionPrediction(
            self._task.classes,
            boxes=found.boxes.numpy(),
            scores=found.scores.numpy(),
            labels=found.labels.numpy(),
            masks_rle=masks if self._task.has_masks else None,
        )


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
