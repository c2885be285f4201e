"""Files that batch prediction writes: tables and pictures."""

import csv
import errno
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scalablevit.config.errors import UserError
from scalablevit.data.sources.files import stem

MASKS, OVERLAYS = "masks", "overlays"
PredictionDict = dict[str, Any]
"""A prediction as plain values, as a server returns it: what a prediction's `to_dict()` returns. `write_pictures` takes
bytes out of it, so that the rest can be JSON."""


class Output(Protocol):
    """Writes predictions to a folder: pictures in the processes that predict, tables in the one that collects.

    Enter it as a context manager to open its tables; they are complete after the exit.
    """

    def write_pictures(self, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
        """Write an image's pictures, and return the prediction without bytes.

        Args:
            name: of the pictures, as `picture_names` gives it, without a suffix.
            image: uint8 (height, width, 3), RGB.
            prediction: the prediction for the image.
        """

    def __enter__(self) -> Self:
        """Open the tables."""

    def add(self, name: str, prediction: PredictionDict) -> None:
        """Add the row or rows of an image to the tables.

        Args:
            name: of the image's file.
            prediction: as `write_pictures` returned it.
        """

    def __exit__(self, *error: object) -> None:
        """Complete and close the tables."""


@runtime_checkable
class ScoredOutput(Protocol):
    """An output that draws only detections with a score of `shown_score` or more."""

    shown_score: float
    """0 to 1."""


def draw(output: Output, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
    """Call `output.write_pictures`; return {"bad": reason} where the name is too long for a file.

    Args:
        output: of the task.
        name: of the pictures, as `picture_names` gives it.
        image: uint8 (height, width, 3), RGB.
        prediction: the prediction for the image.
    """
    try:
        return output.write_pictures(name, image, prediction)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {"bad": "its name is too long for the files of its prediction"}


def refuse_other_size(size: Sequence[int], image: NDArray[np.uint8]) -> None:
    """Refuse to draw a prediction on an image of another size.

    Args:
        size: height and width, pixels, that the prediction is for.
        image: uint8 (height, width, 3), RGB.

    Raises:
        UserError: they differ.
    """
    if tuple(size) != image.shape[:2]:
        raise UserError(
            f"the prediction covers {size[0]} x {size[1]} pixels (height x width), and the image has "
            f"{image.shape[0]} x {image.shape[1]}",
            where="prediction",
            fix="give the image that was predicted",
        )


def picture_names(names: Sequence[str]) -> dict[str, str]:
    """Return the name of each image's pictures, without a suffix: `sub/X` for `sub/X.jpg`.

    Where images differ in their suffixes alone, the first one has that name, and the others are numbered: `X_2`.

    Args:
        names: relative names of the images' files.
    """
    plain = {stem(name) for name in names}
    chosen: dict[str, str] = {}
    used: set[str] = set()
    for name in names:
        candidate, number = stem(name), 1
        while candidate in used or (number > 1 and candidate in plain):
            number += 1
            candidate = f"{stem(name)}_{number}"
        used.add(candidate)
        chosen[name] = candidate
    return chosen


class Table:
    """Base of outputs with one CSV file, `name`, in the folder.

    Args:
        classes: names, in the order of the network's outputs.
        folder: exists.
    """

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
        """Write a row."""
        csv.writer(self._file, lineterminator="\n").writerow(values)  # type: ignore[arg-type]  # open by now


def picture_path(folder: Path, kind: str, name: str, suffix: str) -> Path:
    """Return the path `<folder>/<kind>/<name><suffix>`, and create its folder."""
    path = folder / kind / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
