"""The tags of single images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_tags.task import TaggingTask
from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import prepare_image


@dataclass(frozen=True, eq=False)
class TagPrediction:
    """How probable each tag is."""

    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    """(classes,)"""
    threshold: float

    @property
    def tags(self) -> list[str]:
        """Names of the tags that count as given."""
        return [name for name, share in zip(self.classes, self.probabilities, strict=True) if share >= self.threshold]

    def to_dict(self) -> dict[str, Any]:
        """Return `tags`, and `probabilities` of all of them by name."""
        return {"tags": self.tags, "probabilities": dict(zip(self.classes, self.probabilities.tolist(), strict=True))}


class TagPredictor:
    """See `scalablevit.tasks.capabilities.Predictor`."""

    def __init__(self, stage: Stage, classes: tuple[str, ...]) -> None:
        self.task = TaggingTask(stage, classes)

    def predict(self, model: nn.Module, image: NDArray[np.uint8], device: torch.device) -> TagPrediction:
        logits = model(prepare_image(self.task.stage, image, device)).float()
        return TagPrediction(self.task.classes, logits.sigmoid()[0].cpu().numpy(), self.task.threshold)
