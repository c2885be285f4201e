"""What all plots have in common: resolution, literal text, and how files are written."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from scalablevit.io import write_file

DPI = 110
"""Resolution of plots, pixels per inch."""


def plain(text: str) -> str:
    """Return a text that matplotlib writes literally, without reading mathematics between two `$`."""
    return text.replace("$", r"\$")


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix, completely or not at all; create the folder if necessary."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format=file.suffix.removeprefix("."))
    write_file(file, content.getvalue(), durable=False)
