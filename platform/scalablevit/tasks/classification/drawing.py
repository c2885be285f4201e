"""Images with their class."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.viz.samples import Image, draw_image, resize_for_plot
from scalablevit.viz.style import plain

SHOWN_SHARE = 0.1
"""Of a mixed image's classes, those with less are not named."""


@dataclass(frozen=True)
class ShownClass:
    """Class of an image."""

    number: int
    probability: float | None = None
    """None: it is the truth."""


class ClassDrawing:
    """See `tasks.drawing.Drawing`; an image of one class, which nothing can be drawn on."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: LabelBatch, number: int, classes: Sequence[str]
    ) -> None:
        """Name the classes that were mixed."""
        values, numbers = batch.target[number].topk(min(2, len(classes)))
        named = [f"{classes[c]} {v:.2f}" for v, c in zip(values.tolist(), numbers.tolist(), strict=True)
                 if v >= SHOWN_SHARE]  # fmt: skip
        axes.set_title(plain(" + ".join(named)), fontsize="x-small")
        self.draw(axes, image, None)

    def truth_of(self, batch: LabelBatch, number: int) -> ShownClass:
        """Return the label."""
        return ShownClass(int(batch.label[number]))

    def prediction_of(self, prediction: Tensor, truth: ShownClass) -> ShownClass:
        """Return the most probable class by logits (classes,)."""
        probabilities = prediction.softmax(dim=0)
        return ShownClass(int(probabilities.argmax()), float(probabilities.max()))

    def size(self, image: Image, shown: ShownClass) -> tuple[int, int]:
        """Return that of the image."""
        return image.shape[0], image.shape[1]

    def caption(self, shown: ShownClass, classes: Sequence[str]) -> str:
        """Return the class, and its probability if it is a prediction."""
        probability = "" if shown.probability is None else f" {shown.probability:.2f}"
        return f": {classes[shown.number]}{probability}"

    def draw(self, axes: Axes, image: Image, shown: ShownClass | None, classes: Sequence[str] = ()) -> None:
        """Draw the image alone."""
        draw_image(axes, resize_for_plot(image, image.shape[:2]), image.shape[:2])

    def classes_in(self, shown: ShownClass) -> list[int]:
        """Return none."""
        return []
