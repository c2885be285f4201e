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
"""Class indices (height, width); 255 is ignored."""


class MaskDrawing:
    """Draws label maps; implements `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: MaskBatch, index: int, classes: Sequence[str]
    ) -> None:
        """Draw image `index` of a batch with its mask."""
        self.draw(axes, image, batch.masks[index].numpy(), classes)

    def ground_truth_of(self, batch: MaskBatch, index: int) -> LabelMap:
        """Return the annotated label map of image `index`."""
        mask: LabelMap = batch.masks[index].numpy()
        return mask

    def prediction_of(self, prediction: Tensor, ground_truth: LabelMap) -> LabelMap:
        """Return the predicted label map, uint8 (height, width)."""
        labels: LabelMap = prediction.numpy()
        return labels

    def size(self, image: Image, label_map: LabelMap) -> tuple[int, int]:
        """Return height and width of the label map, in pixels."""
        return label_map.shape[0], label_map.shape[1]

    def caption(self, label_map: LabelMap, classes: Sequence[str]) -> str:
        """Return an empty caption: a legend within the image names the classes."""
        return ""

    def draw(self, axes: Axes, image: Image, label_map: LabelMap, classes: Sequence[str] = ()) -> None:
        """Draw the label map over the image."""
        draw_label_map(axes, image, label_map, classes)

    def classes_in(self, label_map: LabelMap) -> list[int]:
        """Return the class indices in the label map, without ignored pixels."""
        return [index for index in np.unique(label_map).tolist() if index != IGNORE]
