"""Test-time augmentation of segmentation: probabilities averaged over scales and mirror images."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.config.data import MaskPairs
from scalablevit.config.recipe import Stage
from scalablevit.config.task import TestTimeAugmentation
from scalablevit.data.batch import MaskBatch
from scalablevit.data.transforms import scaled_size
from scalablevit.tasks.segmentation.dense_inference import Size, View, averaged_labels, iter_views
from scalablevit.tasks.segmentation.task import SegmentationTask


class MaskAugmentation:
    """Averages probabilities over scales and mirror images; implements `tasks.capabilities.Augmentation`.

    Args:
        stage: the recipe's stage.
        classes: names, in the order of the network's outputs.
        augmentation: the recipe's `task.test_time_augmentation`.
    """

    def __init__(self, stage: Stage, classes: tuple[str, ...], augmentation: TestTimeAugmentation) -> None:
        self._task = SegmentationTask(stage, classes)
        self._augmentation = augmentation

    @property
    def data(self) -> MaskPairs:
        """Return the data section whose evaluation images have the largest size that `predict` uses."""
        data, largest = self._task.data, max(self._augmentation.scales)
        if largest <= 1:
            return data
        sides = {"short_side": int(data.short_side * largest), "long_side": int(data.long_side * largest)}
        return data.model_copy(update=sides)

    def predict(self, model: nn.Module, batch: MaskBatch) -> list[Tensor]:
        """Return label maps uint8 (height, width) at the masks' sizes.

        Probabilities are averaged over the recipe's scales and mirror images. Each image is resized to the sizes that
        its mask's size implies, so images may have any size; those of `data` lose no detail.

        Args:
            model: in eval mode.
            batch: normalized images (3, h, w) and their masks (height, width), one of each per sample.
        """
        sizes = [_size(mask) for mask in batch.masks]
        return [
            averaged_labels(list(self._views(model, image, size)), size)
            for image, size in zip(batch.images, sizes, strict=True)
        ]

    def _views(self, model: nn.Module, image: Tensor, size: Size) -> Iterator[View]:
        """Yield the logits of an image (3, h, w), whose mask has `size`, at each scale, and of its mirror image."""
        data, sliding = self._task.data, self._task.task.sliding
        for scale in self._augmentation.scales:
            scaled = _resize(image, scaled_size(*size, int(data.short_side * scale), int(data.long_side * scale)))
            inputs = [scaled, scaled.flip(-1)] if self._augmentation.flip else [scaled]
            for index, view in iter_views(model, inputs, sliding, self._task.max_pixels):
                yield view.mirrored() if index == 1 else view


def _resize(image: Tensor, size: Size) -> Tensor:
    """Return a normalized image (3, h, w) at another size; bilinear, antialiased where it shrinks."""
    if _size(image) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False, antialias=True)[0]


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
