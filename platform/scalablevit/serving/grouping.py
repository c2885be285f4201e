"""Groups the images of a request: those of a group are decoded and predicted together, in bounded memory."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

IMAGES = 16
"""Most images of a group."""
PIXELS = 2**24
"""Pixels from which on a group is complete: at most 48 MiB of pixels and one more image are in memory at a time."""


def in_groups(images: Iterable[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield images in their order, in groups of up to `IMAGES` images and about `PIXELS` pixels.

    Args:
        images: RGB images uint8 (height, width, 3), consumed one by one.
    """
    group: list[NDArray[np.uint8]] = []
    pixels = 0
    for image in images:
        group.append(image)
        pixels += image.shape[0] * image.shape[1]
        if len(group) == IMAGES or pixels >= PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
