"""The colours of classes: class k has the same one in plots, predictions, error analysis and reports."""

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

FIRST = ("1845fb", "ff5e02", "c91f16", "c849a9", "adad7d", "86c8dd", "578dff", "656364")
"""The first eight colours, hexadecimal RGB. They differ also for people with red-green blindness, and from white and
black; Okabe and Ito's eight (2008) include black.

Source: M. A. Petroff, "Accessible Color Sequences for Data Visualization", 2021, arXiv:2107.02270.
"""
COUNT = 256
"""Number of colours; class 256 has that of class 0. A label map has no more classes."""
_AVOIDED = ("ffffff", "000000", "1a212a")  # backgrounds: white, black, and the page's dark theme
_EQUAL_CONTRAST = 0.179  # relative luminance whose contrast to black and to white is equal by WCAG 2
_STEP = 17  # between the values of red, green and blue that later colours are chosen from


def class_color(index: int) -> Color:
    """Return the colour of a class by its index."""
    return _colors()[int(index) % COUNT]  # int(): a NumPy integer of 8 bits has no 256


def class_colors(count: int) -> list[Color]:
    """Return the colours of the first `count` classes; a class has the same colour for any count."""
    return [class_color(index) for index in range(count)]


def class_hex(index: int) -> str:
    """Return the colour of a class, by its index, as `#rrggbb`, which HTML and matplotlib read."""
    return "#{:02x}{:02x}{:02x}".format(*class_color(index))


def ink_on(color: Color) -> Literal["black", "white"]:
    """Return the text colour with the higher contrast to a background, by WCAG 2."""
    luminance = _linear(np.array(color)) @ (0.2126, 0.7152, 0.0722)
    return "black" if luminance > _EQUAL_CONTRAST else "white"


@cache
def _colors() -> list[Color]:
    """Return all colours: the first eight, then always the one farthest from all earlier ones and the backgrounds."""
    first = np.array([_parse_color(color) for color in FIRST])
    levels = np.arange(0, 256, _STEP)
    choices = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    points = _oklab(choices)
    nearest = np.full(len(choices), np.inf)
    for point in _oklab(np.concatenate([first, [_parse_color(color) for color in _AVOIDED]])):
        nearest = np.minimum(nearest, np.linalg.norm(points - point, axis=1))
    chosen = list(first)
    while len(chosen) < COUNT:
        farthest = int(np.argmax(nearest.round(6)))  # rounded: the same choice on every machine
        chosen.append(choices[farthest])
        nearest = np.minimum(nearest, np.linalg.norm(points - points[farthest], axis=1))
    return [(int(red), int(green), int(blue)) for red, green, blue in chosen]


def _parse_color(color: str) -> Color:
    red, green, blue = bytes.fromhex(color)
    return red, green, blue


def _linear(colors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sRGB colours (..., 3), 0 to 255, as linear light, 0 to 1, by IEC 61966-2-1."""
    shares = colors / 255
    light: NDArray[np.float64] = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return light


def _oklab(colors: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return sRGB colours (n, 3) in OKLab (n, 3), where equal distances look about equally different.

    Source: B. Ottosson, "A perceptual color space for image processing", 2020.
    """
    cones = np.cbrt(_linear(colors) @ np.array([
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]))  # fmt: skip
    lab: NDArray[np.float64] = cones @ np.array([
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ])  # fmt: skip
    return lab
