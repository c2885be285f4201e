"""Prediction of the objects in single images."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.recipe import Stage
from scalablevit.data.instances import RunLengths
from scalablevit.data.transforms import prepare_image
from scalablevit.tasks.detection.task import DetectionTask
from scalablevit.tasks.passes import run_in_passes
from scalablevit.tasks.predictions import DetectionPrediction


class DetectionPredictor:
    """Predicts the objects in images; implements `Predictor` and `BatchPredictor` of `tasks.capabilities`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self._task = DetectionTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> DetectionPrediction:
        """Return the detections in an image uint8 (height, width, 3), RGB, best first, in the image's own pixels."""
        return self.predict_batch(model, [image], device)[0]

    def predict_batch(
        self, model: nn.Module, images: Sequence[NDArray[np.uint8]], device: torch.device
    ) -> list[DetectionPrediction]:
        """Return the detections in each image uint8 (height, width, 3), RGB.

        Images of equal size after preparation share forward passes.
        """

        def run(batch: Tensor) -> list[dict[str, Tensor]]:
            outputs: list[dict[str, Tensor]] = model(list(batch))
            return outputs

        prepared = [prepare_image(self._task.stage, image, device) for image in images]
        detections = run_in_passes(prepared, run)
        return [self._in_original(*of_image) for of_image in zip(detections, prepared, images, strict=True)]

    def _in_original(
        self, detections: dict[str, Tensor], prepared: Tensor, image: NDArray[np.uint8]
    ) -> DetectionPrediction:
        """Return detections of the prepared image (1, 3, h, w) in the original image's pixels."""
        scaled = self._task.in_original(detections, prepared, (image.shape[0], image.shape[1]))
        masks: tuple[RunLengths, ...] = tuple(
            {"size": list(m["size"]), "counts": _text(m["counts"])} for m in scaled.masks or ()
        )
        return DetectionPrediction(
            self._task.classes,
            boxes=scaled.boxes.numpy(),
            scores=scaled.scores.numpy(),
            labels=scaled.labels.numpy(),
            masks_rle=masks if self._task.has_masks else None,
        )


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
