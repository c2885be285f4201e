"""Images with their class."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.viz.samples import Image, draw_image, resize_for_plot
from scalablevit.viz.style import plain

SHOWN_SHARE = 0.1
"""Classes of a mixed image with a smaller share, 0 to 1, are not named."""


@dataclass(frozen=True)
class ClassLabel:
    """Class of an image."""

    index: int
    probability: float | None = None
    """0 to 1; None: this is the ground truth."""


class ClassDrawing:
    """Draws images without marks, since their class is in the caption; implements `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: LabelBatch, index: int, classes: Sequence[str]
    ) -> None:
        """Draw the image under the names and shares of at most two mixed classes."""
        values, indices = batch.targets[index].topk(min(2, len(classes)))
        named = [f"{classes[c]} {v:.2f}" for v, c in zip(values.tolist(), indices.tolist(), strict=True)
                 if v >= SHOWN_SHARE]  # fmt: skip
        axes.set_title(plain(" + ".join(named)), fontsize="x-small")
        self.draw(axes, image, None)

    def ground_truth_of(self, batch: LabelBatch, index: int) -> ClassLabel:
        """Return the label of image `index`."""
        return ClassLabel(int(batch.labels[index]))

    def prediction_of(self, prediction: Tensor, ground_truth: ClassLabel) -> ClassLabel:
        """Return the most probable class by logits (classes,)."""
        probabilities = prediction.softmax(dim=0)
        return ClassLabel(int(probabilities.argmax()), float(probabilities.max()))

    def size(self, image: Image, label: ClassLabel) -> tuple[int, int]:
        """Return height and width of the image, in pixels."""
        return image.shape[0], image.shape[1]

    def caption(self, label: ClassLabel, classes: Sequence[str]) -> str:
        """Return the class, and its probability if it is a prediction."""
        probability = "" if label.probability is None else f" {label.probability:.2f}"
        return f": {classes[label.index]}{probability}"

    def draw(self, axes: Axes, image: Image, label: ClassLabel | None, classes: Sequence[str] = ()) -> None:
        """Draw the image alone."""
        draw_image(axes, resize_for_plot(image, image.shape[:2]), image.shape[:2])

    def classes_in(self, label: ClassLabel) -> list[int]:
        """Return an empty list: no class has a colour here."""
        return []
