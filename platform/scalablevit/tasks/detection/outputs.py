"""What batch prediction leaves of a detector: a file in COCO's format, and overlays."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from faster_coco_eval import mask as run_lengths
from numpy.typing import NDArray

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.names import shown
from scalablevit.tasks.output import OVERLAYS, Answer, picture_path
from scalablevit.viz.overlays import draw_boxes
from scalablevit.viz.palette import class_colors


class Detections:
    """Detection: `detections.json` in COCO's format with a `score` for each annotation, and overlays.

    Images and categories are numbered from 1, categories in the order of the model's classes: the ids of the file that
    the model was trained on are not known here, the names are.
    """

    name = "detections.json"
    shown_score: float = SHOWN_SCORE
    """Detections with a lower score are not drawn."""

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        self.classes = tuple(classes)
        self.folder = folder
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._file: io.TextIOWrapper | None = None

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """Boxes and masks over the image as `overlays/<name>.jpg`, those of scores of `shown_score` or more."""
        palette = class_colors(len(self.classes))
        clear = [i for i, score in enumerate(answer["scores"]) if score >= self.shown_score]
        order = clear[::-1]  # the best last, on top
        masks = answer.get("masks")
        drawn = draw_boxes(
            image,
            [answer["boxes"][i] for i in order],
            [f"{answer['labels'][i]} {answer['scores'][i]:.2f}" for i in order],
            [palette[self.classes.index(answer["labels"][i])] for i in order],
            (run_lengths.decode(masks[i]) for i in order) if masks else (),
        )
        drawn.save(picture_path(self.folder, OVERLAYS, name, ".jpg"), quality=90)
        return {**answer, "size": list(image.shape[:2])}

    def __enter__(self) -> Self:
        categories = [{"id": number + 1, "name": name} for number, name in enumerate(self.classes)]
        self._file = (self.folder / self.name).open("w", encoding="utf-8")
        # annotations are written as they come: those of a million images would fill the memory
        self._file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        return self

    def add(self, name: str, answer: Answer) -> None:
        """The image's annotations, best first."""
        height, width = answer["size"]
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": shown(name), "height": height, "width": width})
        masks = answer.get("masks", [None] * len(answer["boxes"]))
        for (x1, y1, x2, y2), score, label, mask in zip(
            answer["boxes"], answer["scores"], answer["labels"], masks, strict=True
        ):
            self._count += 1
            annotation = {
                "id": self._count,
                "image_id": number,
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


def read_answer(received: Answer, size: tuple[int, int]) -> Answer:
    """Return the answer of a server as the task gives it in the model's own process.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    columns: Answer = {
        name: list(received[name]) for name in ("boxes", "scores", "labels", "masks") if name in received
    }
    if len({len(column) for column in columns.values()}) != 1 or not {"boxes", "scores", "labels"} <= set(columns):
        raise ValueError("columns of different lengths")
    if any(mask["size"] != list(size) for mask in columns.get("masks", ())):
        raise ValueError("masks of another size")
    return columns
