"""Text for people: tables in columns, lists that are shown in part, and styles where a terminal is."""

import os
import sys
from collections.abc import Sequence
from typing import Literal, TextIO

_STYLES = {"bold": 1, "green": 32, "yellow": 33}
"""ECMA-48's numbers."""


def format_table(rows: Sequence[Sequence[str]], *, rule: bool = True) -> str:
    """Rows of as many cells each, the first of them the heading, with a rule below it, in columns of text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if rule:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def and_more(total: int, shown: int, *, before: str = " ", what: str = "more") -> str:
    """Return `and N more` for what a list leaves out, or nothing if it shows all.

    Args:
        total: of the list's things.
        shown: of them at most.
        before: between the things shown and these words.
        what: is left out.
    """
    return f"{before}and {total - shown} {what}" if total > shown else ""


def paint(text: str, style: Literal["bold", "green", "yellow"], out: TextIO | None = None) -> str:
    """Return the text in a style, or as it is where nobody sees styles: no terminal, a dumb one, or NO_COLOR is set.

    Args:
        text: one line.
        style: bold for headings, green for what is best, yellow for warnings.
        out: where the text goes; None: standard output.
    """
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain or not (out or sys.stdout).isatty() else f"\033[{_STYLES[style]}m{text}\033[0m"
