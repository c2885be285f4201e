"""How images of a kind of task are drawn, with what they show."""

from collections.abc import Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes

from scalablevit.data.batch import BatchOfTask
from scalablevit.viz.samples import Image


class Drawing(Protocol):
    """Of a kind of task. What an image shows, as truth or as predicted, has a type of the kind's own."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: BatchOfTask, number: int, classes: Sequence[str]
    ) -> None:
        """Draw an image as training sees it.

        Args:
            axes: without frame.
            image: (height, width, 3) from 0 to 1.
            batch: prepared for training.
            number: of the image in the batch.
            classes: names of all classes.
        """

    def truth_of(self, batch: BatchOfTask, number: int) -> Any:
        """Return what a validation sample shows."""

    def prediction_of(self, prediction: Any, truth: Any) -> Any:
        """Return what a task predicts of one image, in the form of its truth."""

    def size(self, image: Image, shown: Any) -> tuple[int, int]:
        """Return height and width of an image as it is drawn with what it shows."""

    def caption(self, shown: Any, classes: Sequence[str]) -> str:
        """Return what is written above an image after `truth` or `prediction`."""

    def draw(self, axes: Axes, image: Image, shown: Any, classes: Sequence[str] = ()) -> None:
        """Draw an image with what it shows, in the size that this is given in; without `classes` no names."""

    def classes_in(self, shown: Any) -> list[int]:
        """Return the classes that a picture has colours of."""
