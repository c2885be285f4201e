"""The images of a request in groups that are decoded and predicted together, in bounded memory."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

IMAGES = 16
PIXELS = 2**24
"""Of a group: no image is added to one that has as many, so that 48 MB of pixels and one image are there at a time."""


def in_groups(images: Iterable[NDArray[np.uint8]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Yield images in their order, some at a time.

    Args:
        images: each (height, width, 3), taken one by one.
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
