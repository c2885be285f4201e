"""Images with label maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.data.labels import IGNORE
from scalablevit.viz.samples import Image, draw_label_map

LabelMap = NDArray[np.uint8]
"""Class numbers (height, width)."""


class MaskDrawing:
    """See `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: MaskBatch, number: int, classes: Sequence[str]
    ) -> None:
        """Draw the mask."""
        self.draw(axes, image, batch.mask[number].numpy(), classes)

    def truth_of(self, batch: MaskBatch, number: int) -> LabelMap:
        """Return the mask."""
        mask: LabelMap = batch.mask[number].numpy()
        return mask

    def prediction_of(self, prediction: Tensor, truth: LabelMap) -> LabelMap:
        """Return the label map."""
        labels: LabelMap = prediction.numpy()
        return labels

    def size(self, image: Image, shown: LabelMap) -> tuple[int, int]:
        """Return that of the label map."""
        return shown.shape[0], shown.shape[1]

    def caption(self, shown: LabelMap, classes: Sequence[str]) -> str:
        """Return nothing: classes are named within the image."""
        return ""

    def draw(self, axes: Axes, image: Image, shown: LabelMap, classes: Sequence[str] = ()) -> None:
        """Draw the label map over the image."""
        draw_label_map(axes, image, shown, classes)

    def classes_in(self, shown: LabelMap) -> list[int]:
        """Return those of the label map."""
        return [number for number in np.unique(shown).tolist() if number != IGNORE]
