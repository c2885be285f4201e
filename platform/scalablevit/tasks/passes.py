"""Several prepared images through a network together: those of equal size share a pass, in bounded memory."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

PASS_PIXELS = 2**21
"""Pixels of the images of one pass, unless one image alone has more: 41 of 224 x 224."""


def run_in_passes(prepared: Sequence[Tensor], run: Callable[[Tensor], Sequence[T]]) -> list[T]:
    """Return what a network gives for each image, in the order of the images.

    Args:
        prepared: normalized images, each (1, 3, h, w), of any sizes.
        run: takes images (n, 3, h, w) and returns something for each.
    """
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for number, image in enumerate(prepared):
        by_size[image.shape].append(number)
    found: dict[int, T] = {}
    for shape, numbers in by_size.items():
        count = max(1, PASS_PIXELS // (shape[-2] * shape[-1]))
        for first in range(0, len(numbers), count):
            group = numbers[first : first + count]
            images = prepared[group[0]] if len(group) == 1 else torch.cat([prepared[number] for number in group])
            found |= dict(zip(group, run(images), strict=True))
    return [found[number] for number in range(len(prepared))]
