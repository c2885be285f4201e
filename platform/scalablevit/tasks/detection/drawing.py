"""Images with boxes and masks of objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.batch import BoxBatch, InstanceBatch
from scalablevit.data.instances import RunLengths, decode_masks
from scalablevit.tasks.detection.coco_metric import Detections
from scalablevit.viz.samples import Image, draw_boxes, draw_objects


@dataclass(frozen=True)
class ShownObjects:
    """Objects in an image."""

    size: tuple[int, int]
    """Height and width of the image that `boxes` and `masks` are given in."""
    boxes: NDArray[np.float32]
    """(n, 4): x1, y1, x2, y2."""
    labels: list[int]
    masks: list[RunLengths]
    """Run lengths; none where there are boxes only."""
    scores: list[float] | None = None
    """None: it is the truth."""


class BoxDrawing:
    """See `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: BoxBatch, number: int, classes: Sequence[str]
    ) -> None:
        """Draw boxes, and masks if they are read."""
        labels = batch.labels[number].tolist()
        masks = () if batch.masks is None else batch.masks[number].numpy()
        draw_objects(axes, image, image.shape[:2], masks, labels)
        draw_boxes(axes, batch.boxes[number].numpy(), labels, classes)

    def truth_of(self, batch: InstanceBatch, number: int) -> ShownObjects:
        """Return the annotated objects."""
        found = batch.instances[number]
        return ShownObjects(found.size, found.boxes, found.labels.tolist(), found.masks or [])

    def prediction_of(self, prediction: Detections, truth: ShownObjects) -> ShownObjects:
        """Return the detections with a score of `SHOWN_SCORE` or more."""
        kept = [number for number, score in enumerate(prediction.scores.tolist()) if score >= SHOWN_SCORE]
        return ShownObjects(
            truth.size,
            prediction.boxes.numpy()[kept],
            [int(prediction.labels[number]) for number in kept],
            [] if prediction.masks is None else [prediction.masks[number] for number in kept],
            [float(prediction.scores[number]) for number in kept],
        )

    def size(self, image: Image, shown: ShownObjects) -> tuple[int, int]:
        """Return that of the image before it was scaled."""
        return shown.size

    def caption(self, shown: ShownObjects, classes: Sequence[str]) -> str:
        """Return nothing: objects are named within the image."""
        return ""

    def draw(self, axes: Axes, image: Image, shown: ShownObjects, classes: Sequence[str] = ()) -> None:
        """Draw masks and boxes over the image."""
        masks = (decode_masks([each], shown.size)[0] for each in shown.masks)
        draw_objects(axes, image, shown.size, masks, shown.labels)
        draw_boxes(axes, shown.boxes, shown.labels, classes, shown.scores)

    def classes_in(self, shown: ShownObjects) -> list[int]:
        """Return those of the objects."""
        return list(shown.labels)
