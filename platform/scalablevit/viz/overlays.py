"""Predictions drawn onto their images: masks, boxes and names, readable also on small images."""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scalablevit.viz.palette import Color, ink_on

SMALLEST, LARGEST = 480, 1600
"""Pixels of a drawing's long side: smaller images are enlarged by whole factors, larger ones shrunk."""
TEXT_PIXELS = 14
OPACITY = 0.5
"""Of masks."""


def draw_labels(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], legend: Sequence[tuple[Color, str]], colors: Sequence[Color]
) -> Image.Image:
    """A label map over its image, with a legend below.

    Args:
        image: (height, width, 3).
        labels: class numbers (height, width).
        legend: colour and text of the lines below the image.
        colors: of the classes.
    """
    picture = _at_drawing_size(image)
    table = np.array(colors, np.uint8)
    picture = Image.blend(picture, Image.fromarray(table[_fitted(labels, picture)]), OPACITY)
    step = TEXT_PIXELS + 8
    framed = Image.new("RGB", (picture.width, picture.height + step * len(legend) + 6), "white")
    framed.paste(picture)
    draw = ImageDraw.Draw(framed)
    for line, (color, text) in enumerate(legend):
        top = picture.height + 6 + line * step
        draw.rectangle((6, top, 6 + TEXT_PIXELS, top + TEXT_PIXELS), fill=color, outline="black")
        draw.text((14 + TEXT_PIXELS, top - 2), text, fill="black", font=_font())
    return framed


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    colors: Sequence[Color],
    masks: Iterable[NDArray[np.uint8]] = (),
) -> Image.Image:
    """Boxes with their texts, and masks if there are any, over their image; later ones lie on top.

    Args:
        image: (height, width, 3).
        boxes: x1, y1, x2, y2 in the image's pixels.
        texts: of the boxes.
        colors: of the boxes.
        masks: (height, width), not zero where the object is.
    """
    picture = _at_drawing_size(image)
    for mask, color in zip(masks, colors, strict=False):  # no masks: boxes alone
        opacity = Image.fromarray((_fitted(mask, picture) != 0) * np.uint8(255 * OPACITY))
        picture.paste(color, (0, 0), opacity)
    factor = picture.width / image.shape[1], picture.height / image.shape[0]
    draw = ImageDraw.Draw(picture)
    for box, text, color in zip(boxes, texts, colors, strict=True):
        left, top, right, bottom = (side * factor[i % 2] for i, side in enumerate(box))
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        _draw_tag(draw, (left, top), text, color, picture.size)
    return picture


def _draw_tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color, size: tuple[int, int]
) -> None:
    """Text on its colour, above the corner, moved inside where it would leave the picture."""
    width, height = draw.textlength(text, font=_font()) + 6, TEXT_PIXELS + 5
    left = max(0.0, min(corner[0], size[0] - width))
    top = max(0.0, min(corner[1] - height, size[1] - height))
    draw.rectangle((left, top, left + width, top + height), fill=color)
    draw.text((left + 3, top + 1), text, fill=ink_on(color), font=_font())


def _at_drawing_size(pixels: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(pixels)
    longest = max(picture.size)
    if longest > LARGEST:
        picture.thumbnail((LARGEST, LARGEST))
    elif longest < SMALLEST:
        factor = math.ceil(SMALLEST / longest)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture


def _fitted(labels: NDArray[np.uint8], picture: Image.Image) -> NDArray[np.uint8]:
    """A map of numbers (height, width) at a picture's size."""
    return np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: class names need not be English."""
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT_PIXELS)
