"""Names of files as printable text (a name may have any bytes but `/` and zero), and names that look the same."""

import unicodedata
from collections.abc import Iterable


def printable(name: object) -> str:
    """Return a name on one line; what cannot be printed or stored as text (line ends, broken UTF-8) is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in str(name)
    )


def describe_lookalikes(names: Iterable[str]) -> list[str]:
    """Return a description of each group of names that differ only in Unicode form, and so look the same.

    An accented letter, for example, may be one character or two.
    """
    by_form: dict[str, set[str]] = {}
    for name in names:
        by_form.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
    return [f"{form} ({' and '.join(map(ascii, sorted(forms)))})" for form, forms in by_form.items() if len(forms) > 1]
