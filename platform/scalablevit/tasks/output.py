"""What batch prediction leaves in its folder: tables and pictures."""

import csv
import errno
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

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


def draw(output: Output, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
    """`output.write_pictures`; a name too long for a picture's makes a bad image."""
    try:
        return output.write_pictures(name, image, answer)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return {"bad": "its name is too long for the pictures of its answer"}


class Table:
    """An output with one CSV file in the folder."""

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
        """Write a line."""
        csv.writer(self._file, lineterminator="\n").writerow(values)  # type: ignore[arg-type]  # open by now


def place(folder: Path, kind: str, name: str, suffix: str) -> Path:
    """Return `<kind>/<name><suffix>` with its folder made; the whole name, so that a.jpg and a.png keep apart."""
    path = folder / kind / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
