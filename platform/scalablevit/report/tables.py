"""Tables as text and as files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def lined_up(rows: Sequence[Sequence[str]], *, rule: bool = True) -> str:
    """Rows of as many cells each, the first of them the heading, with a rule below it, in columns of text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if rule:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


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
