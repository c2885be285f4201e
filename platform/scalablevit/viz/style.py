"""What all pictures have in common: resolution, colours of classes, and plain text."""

from matplotlib import colormaps

DPI = 110


def plain(text: str) -> str:
    """Such that matplotlib writes it as it is, and reads no mathematics between two `$`."""
    return text.replace("$", r"\$")


def colour(number: int) -> tuple[float, float, float]:
    """Of a class; neighbouring numbers differ."""
    red, green, blue, _ = colormaps["tab20"](number * 2 % 20 + number // 10 % 2)
    return red, green, blue
