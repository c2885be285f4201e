"""Decode images alike, whatever a user gives: files, Pillow's images or arrays."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from scalablevit.config.data import Data
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, convert_image, mean_color, read_image

Image: TypeAlias = str | Path | PillowImage.Image | NDArray[np.uint8]
"""A file's path, an image of Pillow, or an RGB array uint8 (H, W, 3)."""
Images: TypeAlias = Image | Sequence[Image]
"""One image, a list of them in any sizes, or an array uint8 (N, H, W, 3)."""

GIVE = "give a path, an image of Pillow or an RGB array uint8 (height, width, 3), or a list of them"


def decode_images(images: Images, data: Data) -> Iterator[NDArray[np.uint8]]:
    """Decode images one after another: upright, RGB, with transparent pixels on the data's mean colour.

    Args:
        images: what the user gives.
        data: the data section of the model's recipe.

    Yields:
        RGB arrays uint8 (H, W, 3).

    Raises:
        UserError: one is no image; by its path or index.
    """
    several: Any = images if _are_several(images) else [images]
    for index, image in enumerate(several):
        try:
            yield _decode(image, data, f"image {index}")
        except BadSample as bad:
            location = bad.path if isinstance(image, str | Path) else f"image {index}"
            raise UserError(bad.reason, where=location, fix="leave it out, or give another image") from None


def _are_several(images: Images) -> bool:
    return images.ndim == 4 if isinstance(images, np.ndarray) else isinstance(images, list | tuple)


def _decode(image: object, data: Data, name: str) -> NDArray[np.uint8]:
    background = mean_color(data.mean)
    if isinstance(image, str | Path):
        return read_image(Path(image).expanduser(), data.max_pixels, background)
    if isinstance(image, PillowImage.Image):
        return convert_image(image, data.max_pixels, name, background)
    if not isinstance(image, np.ndarray):
        raise UserError(f"is a {type(image).__name__}, which is no image", where=name, fix=GIVE)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise UserError(f"is an array {image.dtype} {image.shape}", where=name, fix=GIVE)
    return np.ascontiguousarray(image)
