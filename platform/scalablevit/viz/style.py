"""What all pictures have in common: resolution, plain text, and how they are written."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from scalablevit.io import write_file

DPI = 110


def plain(text: str) -> str:
    """Such that matplotlib writes it as it is, and reads no mathematics between two `$`."""
    return text.replace("$", r"\$")


def save(figure: Figure, file: Path) -> None:
    """Write a figure in the format of the file's suffix, whole or not at all; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format=file.suffix.removeprefix("."))
    write_file(file, content.getvalue(), durable=False)
