"""Metrics of an analysis as files: CSV and JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def save_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write rows with the same keys as CSV; the folder is made."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _put(file, text.getvalue())


def save_note(note: Mapping[str, Any], file: Path) -> None:
    """Write a mapping as JSON; the folder is made."""
    _put(file, json.dumps(note, indent=1, ensure_ascii=False) + "\n")


def _put(file: Path, text: str) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
