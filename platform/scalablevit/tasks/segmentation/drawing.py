"""Label maps of segmentation, drawn over images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.data.labels import IGNORE
from scalablevit.viz.samples import Image, draw_label_map

LabelMap = NDArray[np.uint8]
"""Class numbers (height, width); 255 is ignored."""


class MaskDrawing:
    """Draws label maps; implements `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: MaskBatch, number: int, classes: Sequence[str]
    ) -> None:
        """Draw image `number` of a batch with its mask."""
        self.draw(axes, image, batch.mask[number].numpy(), classes)

    def truth_of(self, batch: MaskBatch, number: int) -> LabelMap:
        """Return the true label map of image `number`."""
        mask: LabelMap = batch.mask[number].numpy()
        return mask

    def prediction_of(self, prediction: Tensor, truth: LabelMap) -> LabelMap:
        """Return the predicted label map."""
        labels: LabelMap = prediction.numpy()
        return labels

    def size(self, image: Image, label_map: LabelMap) -> tuple[int, int]:
        """Return the height and width of the label map."""
        return label_map.shape[0], label_map.shape[1]

    def caption(self, label_map: LabelMap, classes: Sequence[str]) -> str:
        """Return an empty caption: a legend within the image names the classes."""
        return ""

    def draw(self, axes: Axes, image: Image, label_map: LabelMap, classes: Sequence[str] = ()) -> None:
        """Draw the label map over the image."""
        draw_label_map(axes, image, label_map, classes)

    def classes_in(self, label_map: LabelMap) -> list[int]:
        """Return the class numbers in the label map, without ignored pixels."""
        return [number for number in np.unique(label_map).tolist() if number != IGNORE]
