"""What batch prediction leaves in its folder: tables and pictures, by the kind of task."""

import csv
import errno
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from faster_coco_eval import mask as run_lengths
from numpy.typing import NDArray
from PIL import Image

from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.names import shown
from scalablevit.serving.drawing import class_colors, draw_boxes, draw_labels

MASKS, OVERLAYS = "masks", "overlays"
Answer = dict[str, Any]
"""Of the task's `answer`; without bytes once its pictures are written."""


class Output(Protocol):
    """Pictures are written where the image is answered, tables where the answers come together.

    Used as a context manager, it opens its tables; they are complete when it is left.
    """

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """Write what is drawn of an image uint8 (height, width, 3); gives the answer's plain values."""

    def __enter__(self) -> Self:
        """Open the tables."""

    def add(self, name: str, answer: Answer) -> None:
        """Add an image's line or lines."""

    def __exit__(self, *error: object) -> None:
        """End the tables."""


FILES = ("labels.csv", "shares.csv", "classes.csv", "detections.json", MASKS, OVERLAYS)
"""What any of them makes in the folder."""


def build_output(kind: str, classes: Sequence[str], folder: Path) -> Output:
    """The output of a kind of task (`Task.kind` of the recipe) in a folder."""
    outputs: dict[str, Callable[[Sequence[str], Path], Output]] = {
        "classification": Labels,
        "segmentation": Masks,
        "detection": Detections,
    }
    return outputs[kind](classes, folder)


def draw(output: Output, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
    """`output.write_pictures`; a name too long for a picture's makes a bad image."""
    try:
        return output.write_pictures(name, image, answer)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {"bad": "its name is too long for the pictures of its answer"}


class _Table:
    """One CSV file in the folder."""

    name: str
    header: tuple[str, ...]

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        self.classes = tuple(classes)
        self.folder = folder
        self._file: io.TextIOWrapper | None = None

    def __enter__(self) -> Self:
        self._file = (self.folder / self.name).open("w", encoding="utf-8", newline="")
        self.write(*self.header)
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, *values: Any) -> None:
        csv.writer(self._file, lineterminator="\n").writerow(values)  # type: ignore[arg-type]  # open by now


class Labels(_Table):
    """Classification: `labels.csv` with the class, its probability, and the five most probable as one JSON object."""

    name = "labels.csv"
    header = ("file", "label", "probability", "top5")

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """Nothing is drawn."""
        return answer

    def add(self, name: str, answer: Answer) -> None:
        """One line for an image."""
        top = {label: round(value, 6) for label, value in answer["probabilities"].items()}
        self.write(shown(name), answer["class"], f"{answer['probability']:.6f}", json.dumps(top, ensure_ascii=False))


class Masks(_Table):
    """Segmentation: palette PNGs of class numbers, overlays, `shares.csv` and `classes.csv`."""

    name = "shares.csv"
    header = ("file", "class", "share")

    def __enter__(self) -> Self:
        with (self.folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(("number", "class", "color"))
            for number, (name, color) in enumerate(zip(self.classes, class_colors(len(self.classes)), strict=True)):
                lines.writerow((number, name, "#{:02x}{:02x}{:02x}".format(*color)))
        return super().__enter__()

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """The mask as `masks/<file>.png`, and over its image as `overlays/<file>.jpg`."""
        colors = class_colors(len(self.classes))
        mask = Image.open(io.BytesIO(answer["mask_png"]))
        labels = np.array(mask, np.uint8)
        palette = Image.fromarray(labels)
        palette.putpalette([part for color in colors for part in color])  # makes it a palette image, pixels unchanged
        palette.save(_place(self.folder, MASKS, name, ".png"))
        legend = [
            (colors[self.classes.index(label)], f"{label}  {share:.1%}")
            for label, share in zip(answer["classes"], answer["shares"], strict=True)
        ]
        drawn = draw_labels(image, labels, legend, colors)
        drawn.save(_place(self.folder, OVERLAYS, name, ".jpg"), quality=90)
        return {"classes": answer["classes"], "shares": answer["shares"]}

    def add(self, name: str, answer: Answer) -> None:
        """A line for each class in the image, largest first."""
        for label, share in zip(answer["classes"], answer["shares"], strict=True):
            self.write(shown(name), label, f"{share:.6f}")


class Detections:
    """Detection: `detections.json` in COCO's format with a `score` for each annotation, and overlays.

    Images and categories are numbered from 1, categories in the order of the model's classes: the ids of the file that
    the model was trained on are not known here, the names are.
    """

    name = "detections.json"

    def __init__(self, classes: Sequence[str], folder: Path) -> None:
        self.classes = tuple(classes)
        self.folder = folder
        self._images: list[dict[str, Any]] = []
        self._count = 0
        self._file: io.TextIOWrapper | None = None

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """Boxes and masks over the image as `overlays/<file>.jpg`; of scores below `SHOWN_SCORE` there are too many."""
        palette = class_colors(len(self.classes))
        clear = [i for i, score in enumerate(answer["scores"]) if score >= SHOWN_SCORE]
        order = clear[::-1]  # the best last, on top
        masks = answer.get("masks")
        drawn = draw_boxes(
            image,
            [answer["boxes"][i] for i in order],
            [f"{answer['labels'][i]} {answer['scores'][i]:.2f}" for i in order],
            [palette[self.classes.index(answer["labels"][i])] for i in order],
            (run_lengths.decode(masks[i]) for i in order) if masks else (),
        )
        drawn.save(_place(self.folder, OVERLAYS, name, ".jpg"), quality=90)
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


def _place(folder: Path, kind: str, name: str, suffix: str) -> Path:
    """`<kind>/<name><suffix>` with its folder made; the whole name, so that a.jpg and a.png keep apart."""
    path = folder / kind / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
