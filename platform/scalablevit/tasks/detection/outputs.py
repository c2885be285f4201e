"""Output of batch prediction with a detector: a file in COCO's format, and overlays."""

import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from hotcoco import mask as run_lengths
from numpy.typing import NDArray
from PIL import Image

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.config.task_info import TASKS
from scalablevit.data.instances import damage_of
from scalablevit.data.names import printable
from scalablevit.tasks.output import OVERLAYS, PredictionDict, picture_path, refuse_other_size
from scalablevit.viz.overlays import draw_boxes
from scalablevit.viz.palette import class_colors


class Detections:
    """Writes `detections.json` in COCO's format with a `score` for each annotation, and overlays.

    Images and categories have ids from 1, categories in the order of the model's classes: the ids in the file of the
    training data are not known here, only the names are.

    Args:
        classes: names, in the order of the network's outputs.
        folder: exists.
    """

    name = "detections.json"
    shown_score: float = SHOWN_SCORE
    """Detections with a lower score, 0 to 1, are not drawn; all are in the file."""

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        self.classes = tuple(classes)
        self.folder = folder
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._file: io.TextIOWrapper | None = None

    def write_pictures(self, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
        """Draw boxes and masks with a score of `shown_score` or more over the image, as `overlays/<name>.jpg`.

        Returns:
            The prediction, with the image's height and width in pixels as `size`.
        """
        drawn = _draw(image, prediction, self.classes, self.shown_score)
        drawn.save(picture_path(self.folder, OVERLAYS, name, ".jpg"), quality=90)
        return {**prediction, "size": list(image.shape[:2])}

    def __enter__(self) -> Self:
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(self.classes)]
        self._file = (self.folder / self.name).open("w", encoding="utf-8")
        # annotations are written as they come: those of a million images would fill the memory
        info = {"description": TASKS["detection"].output_note}
        self._file.write(f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"annotations": [')
        return self

    def add(self, name: str, prediction: PredictionDict) -> None:
        """Add the image's annotations, best first."""
        height, width = prediction["size"]
        image_id = len(self._images) + 1
        self._images.append({"id": image_id, "file_name": printable(name), "height": height, "width": width})
        masks = prediction.get("masks", [None] * len(prediction["boxes"]))
        for (x1, y1, x2, y2), score, label, mask in zip(
            prediction["boxes"], prediction["scores"], prediction["labels"], masks, strict=True
        ):
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": image_id,
                "category_id": self.classes.index(label) + 1,
                "category": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(run_lengths.area(mask)) if mask else (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": score,
                **({"segmentation": mask} if mask else {}),
            }
            self._write(("," if self._count > 1 else "") + "\n" + json.dumps(annotation))

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._write(f'],\n"images": {json.dumps(self._images)}}}\n')
            self._file.close()

    def _write(self, text: str) -> None:
        self._file.write(text)  # type: ignore[union-attr]  # open by now


def draw_prediction(
    image: NDArray[np.uint8], prediction: PredictionDict, classes: Sequence[str], min_score: float
) -> Image.Image:
    """Return boxes, and masks if there are any, drawn over their image.

    Args:
        image: RGB (height, width, 3).
        prediction: for this image.
        classes: names, in the order of the network's outputs.
        min_score: detections with a lower score, 0 to 1, are left out.

    Raises:
        UserError: masks are of another size than the image, or boxes reach beyond it.
    """
    if prediction.get("masks"):
        size = prediction["masks"][0]["size"]
    else:
        ends = [max((box[side] for box in prediction["boxes"]), default=0.0) for side in (3, 2)]
        size = [math.ceil(end) if end > pixels + 1 else pixels for end, pixels in zip(ends, image.shape, strict=False)]
    refuse_other_size(size, image)
    return _draw(image, prediction, classes, min_score)


def _draw(
    image: NDArray[np.uint8], prediction: PredictionDict, classes: Sequence[str], min_score: float
) -> Image.Image:
    palette = class_colors(len(classes))
    confident = [i for i, score in enumerate(prediction["scores"]) if score >= min_score]
    order = confident[::-1]  # the best last, on top
    masks = prediction.get("masks")
    return draw_boxes(
        image,
        [prediction["boxes"][i] for i in order],
        [f"{prediction['labels'][i]} {prediction['scores'][i]:.2f}" for i in order],
        [palette[classes.index(prediction["labels"][i])] for i in order],
        (run_lengths.decode(masks[i]) for i in order) if masks else (),
    )


def parse_prediction(received: PredictionDict, size: tuple[int, int]) -> PredictionDict:
    """Return a server's prediction with the types of `DetectionPrediction.to_dict`.

    Args:
        received: from a server's JSON.
        size: height and width of the image, pixels.

    Raises:
        ValueError, TypeError, KeyError: it is no prediction for an image of that size.
    """
    columns: PredictionDict = {
        name: list(received[name]) for name in ("boxes", "scores", "labels", "masks") if name in received
    }
    if len({len(column) for column in columns.values()}) != 1 or not {"boxes", "scores", "labels"} <= set(columns):
        raise ValueError("columns of different lengths")
    for box in columns["boxes"]:
        if len(box) != 4 or not all(map(_is_number, box)) or box[0] > box[2] or box[1] > box[3]:
            raise ValueError("a box that is not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2")
    if not all(map(_is_number, columns["scores"])):
        raise ValueError("a score that is no number")
    if any(mask["size"] != list(size) for mask in columns.get("masks", ())):
        raise ValueError("masks of another size")
    for mask in columns.get("masks", ()):
        if not isinstance(mask["counts"], str):
            raise TypeError("a mask that is no run lengths")
        if damage := damage_of(mask["counts"], size):
            raise ValueError(f"run lengths that {damage}")
    return columns


def _is_number(value: object) -> bool:
    """Return whether a value of JSON is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
