"""Names of figures that belong to a class."""

import re


def figure_name(figure: str, class_name: str) -> str:
    """`<figure>/<class>`; characters that trackers refuse in names, such as commas, become underscores."""
    return f"{figure}/{re.sub(r'[^A-Za-z0-9_. -]', '_', class_name)}"
