"""Images with boxes and masks of objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.batch import DetectionEvalBatch, DetectionTrainBatch
from scalablevit.data.instances import RunLengths, decode_masks
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.viz.samples import Image, draw_boxes, draw_objects


@dataclass(frozen=True)
class LabelledObjects:
    """Objects in an image."""

    size: tuple[int, int]
    """Height and width, in pixels, of the image that `boxes` and `masks` refer to."""
    boxes: NDArray[np.float32]
    """(n, 4): x1, y1, x2, y2, in pixels."""
    labels: list[int]
    """n class indices from 0."""
    masks: list[RunLengths]
    """n masks as run lengths; empty where there are boxes only."""
    scores: list[float] | None = None
    """n values, 0 to 1; None: this is the ground truth."""


class BoxDrawing:
    """Draws boxes and masks of objects; implements `tasks.drawing.Drawing`."""

    def draw_training_image(
        self, axes: Axes, image: Image, batch: DetectionTrainBatch, index: int, classes: Sequence[str]
    ) -> None:
        """Draw boxes, and masks if they are read."""
        labels = batch.labels[index].tolist()
        masks = () if batch.masks is None else batch.masks[index].numpy()
        draw_objects(axes, image, image.shape[:2], masks, labels)
        draw_boxes(axes, batch.boxes[index].numpy(), labels, classes)

    def ground_truth_of(self, batch: DetectionEvalBatch, index: int) -> LabelledObjects:
        """Return the annotated objects of image `index`, in pixels of the original image."""
        instances = batch.instances[index]
        return LabelledObjects(instances.size, instances.boxes, instances.labels.tolist(), instances.masks or [])

    def prediction_of(self, prediction: Detections, ground_truth: LabelledObjects) -> LabelledObjects:
        """Return the detections with a score of `SHOWN_SCORE` or more."""
        kept = [index for index, score in enumerate(prediction.scores.tolist()) if score >= SHOWN_SCORE]
        return LabelledObjects(
            ground_truth.size,
            prediction.boxes.numpy()[kept],
            [int(prediction.labels[index]) for index in kept],
            [] if prediction.masks is None else [prediction.masks[index] for index in kept],
            [float(prediction.scores[index]) for index in kept],
        )

    def size(self, image: Image, objects: LabelledObjects) -> tuple[int, int]:
        """Return height and width of the original image, before it was scaled, in pixels."""
        return objects.size

    def caption(self, objects: LabelledObjects, classes: Sequence[str]) -> str:
        """Return an empty caption: objects are named within the image."""
        return ""

    def draw(self, axes: Axes, image: Image, objects: LabelledObjects, classes: Sequence[str] = ()) -> None:
        """Draw masks and boxes over the image."""
        masks = (decode_masks([mask], objects.size)[0] for mask in objects.masks)
        draw_objects(axes, image, objects.size, masks, objects.labels)
        draw_boxes(axes, objects.boxes, objects.labels, classes, objects.scores)

    def classes_in(self, objects: LabelledObjects) -> list[int]:
        """Return the class index of each object."""
        return list(objects.labels)
