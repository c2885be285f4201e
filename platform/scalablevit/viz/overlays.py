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
"""Font size, pixels."""
OPACITY = 0.5
"""Opacity of masks, 0 to 1."""


def draw_labels(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], legend: Sequence[tuple[Color, str]], colors: Sequence[Color]
) -> Image.Image:
    """Return a label map drawn over its image, with a legend below.

    Args:
        image: RGB (height, width, 3).
        labels: class indices (height, width).
        legend: colour and text of the lines below the image.
        colors: colours by class index.
    """
    picture = _at_drawing_size(image)
    table = np.array(colors, np.uint8)
    return _with_legend(Image.blend(picture, Image.fromarray(table[_resize_labels(labels, picture)]), OPACITY), legend)


def draw_legend(image: NDArray[np.uint8], legend: Sequence[tuple[Color, str]]) -> Image.Image:
    """Return an image with a legend below.

    Args:
        image: RGB (height, width, 3).
        legend: colour and text of the lines below the image.
    """
    return _with_legend(_at_drawing_size(image), legend)


def draw_boxes(
    image: NDArray[np.uint8],
    boxes: Sequence[Sequence[float]],
    texts: Sequence[str],
    colors: Sequence[Color],
    masks: Iterable[NDArray[np.uint8]] = (),
) -> Image.Image:
    """Return boxes with their texts, and masks if there are any, drawn over their image; later ones are on top.

    Args:
        image: RGB (height, width, 3).
        boxes: corners x1, y1, x2, y2 in pixels of the image.
        texts: the text of each box.
        colors: the colour of each box.
        masks: the mask of each box, (height, width), not zero where the object is; empty: no masks.
    """
    picture = _at_drawing_size(image)
    for mask, color in zip(masks, colors, strict=False):  # no masks: boxes alone
        opacity = Image.fromarray((_resize_labels(mask, picture) != 0) * np.uint8(255 * OPACITY))
        picture.paste(color, (0, 0), opacity)
    factor = picture.width / image.shape[1], picture.height / image.shape[0]
    draw = ImageDraw.Draw(picture)
    for box, text, color in zip(boxes, texts, colors, strict=True):
        left, top, right, bottom = (side * factor[i % 2] for i, side in enumerate(box))
        draw.rectangle((left, top, right, bottom), outline=color, width=2)
        _draw_tag(draw, (left, top), text, color, picture.size)
    return picture


def _with_legend(picture: Image.Image, legend: Sequence[tuple[Color, str]]) -> Image.Image:
    step = TEXT_PIXELS + 8
    framed = Image.new("RGB", (picture.width, picture.height + step * len(legend) + 6), "white")
    framed.paste(picture)
    draw = ImageDraw.Draw(framed)
    for index, (color, text) in enumerate(legend):
        top = picture.height + 6 + index * step
        draw.rectangle((6, top, 6 + TEXT_PIXELS, top + TEXT_PIXELS), fill=color, outline="black")
        draw.text((14 + TEXT_PIXELS, top - 2), text, fill="black", font=_font())
    return framed


def _draw_tag(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, color: Color, size: tuple[int, int]
) -> None:
    """Draw a text on its colour above a corner (x, y), but inside a picture of `size` (width, height), pixels."""
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


def _resize_labels(labels: NDArray[np.uint8], picture: Image.Image) -> NDArray[np.uint8]:
    """Return a map of numbers (height, width) resized to a picture's size."""
    return np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib: class names need not be English."""
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT_PIXELS)
