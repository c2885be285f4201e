"""Export of a segmentation model: as one network, with logits (N, classes, H, W) at the input's size."""

import torch.nn.functional as F
from torch import Tensor

from scalablevit.config.recipe import Stage
from scalablevit.tasks.export import Export, Size
from scalablevit.tasks.preprocessing import TaskPreprocessing
from scalablevit.tasks.segmentation.task import sections


def describe_preprocessing(stage: Stage) -> TaskPreprocessing:
    """Return how images are scaled, and the windows of evaluation."""
    task, data = sections(stage)
    return TaskPreprocessing(
        short_side=data.short_side,
        long_side=data.long_side,
        sliding=task.sliding.model_dump() if task.sliding else None,
    )


def _training_crop(stage: Stage) -> Size:
    _, data = sections(stage)
    return data.crop_size, data.crop_size


def _at_input_size(logits: Tensor, pixels: Tensor) -> Tensor:
    return F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=False)


EXPORT = Export(_training_crop, finish=_at_input_size)
