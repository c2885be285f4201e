"""Names of files as they can be shown (one may hold any bytes but `/` and zero), and what Unicode makes alike."""

import unicodedata
from collections.abc import Iterable


def shown(name: object) -> str:
    """A name on one line, with what cannot be printed or stored as text (line ends, broken UTF-8) as an escape."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in str(name)
    )


def describe_lookalikes(names: Iterable[str]) -> list[str]:
    """Describe names that look the same and differ only in Unicode form, such as an accent apart from its letter."""
    by_form: dict[str, set[str]] = {}
    for name in names:
        by_form.setdefault(unicodedata.normalize("NFC", name), set()).add(name)
    return [f"{form} ({' and '.join(map(ascii, sorted(forms)))})" for form, forms in by_form.items() if len(forms) > 1]
