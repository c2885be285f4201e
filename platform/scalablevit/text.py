"""Text for people: tables in columns, and lists that are shown in part."""

from collections.abc import Sequence


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
