"""Writing of an analysis's metrics as CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalablevit.io import write_file


def save_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write at least one row, all with the same keys, as CSV; create the file's folder."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(file, text.getvalue())


def save_note(note: Mapping[str, Any], file: Path) -> None:
    """Write a mapping as JSON; create the file's folder."""
    _write(file, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file(file, text.encode(), durable=False)
