"""How images of a kind of task are drawn, with ground truth or predictions."""

from collections.abc import Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes

from scalablevit.data.batch import BatchOfTask
from scalablevit.viz.samples import Image


class Drawing(Protocol):
    """Draws images of one kind of task with annotations.

    An annotation is ground truth or a prediction: a class, a label map or objects, in a type of the kind's own.
    """

    def draw_training_image(
        self, axes: Axes, image: Image, batch: BatchOfTask, index: int, classes: Sequence[str]
    ) -> None:
        """Draw an image as training sees it, with its annotation.

        Args:
            axes: without frame.
            image: RGB (height, width, 3), from 0 to 1.
            batch: prepared for training.
            index: position of the image in the batch.
            classes: names of all classes.
        """

    def ground_truth_of(self, batch: BatchOfTask, index: int) -> Any:
        """Return the annotation of a validation sample.

        Args:
            batch: as `collate` returns it.
            index: position of the sample in the batch.
        """

    def prediction_of(self, prediction: Any, ground_truth: Any) -> Any:
        """Return the prediction for one image as an annotation.

        Args:
            prediction: that image's entry of what `Task.predict` returns.
            ground_truth: the image's own annotation, of `ground_truth_of`.
        """

    def size(self, image: Image, annotation: Any) -> tuple[int, int]:
        """Return height and width, in pixels, in which an image is drawn with its annotation."""

    def caption(self, annotation: Any, classes: Sequence[str]) -> str:
        """Return the text above an image that follows the word `truth` or `prediction`."""

    def draw(self, axes: Axes, image: Image, annotation: Any, classes: Sequence[str] = ()) -> None:
        """Draw an image with its annotation, in the coordinates of `size`.

        Args:
            axes: to draw on.
            image: RGB (height, width, 3), from 0 to 1, perhaps smaller than `size`.
            annotation: of `ground_truth_of` or `prediction_of`.
            classes: names of all classes; empty: nothing is named.
        """

    def classes_in(self, annotation: Any) -> list[int]:
        """Return the class indices whose colours a drawing with this annotation has."""
