"""Forward passes that images of equal size share, in bounded memory."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

PASS_PIXELS = 2**21
"""Most pixels of all images of one pass, unless one image alone has more: 41 images of 224 x 224."""


def run_in_passes(prepared: Sequence[Tensor], run: Callable[[Tensor], Sequence[T]]) -> list[T]:
    """Return the outputs for each image, in the order of the images.

    Args:
        prepared: normalized images, each (1, 3, h, w), of any sizes.
        run: takes a batch (n, 3, h, w) and returns n outputs.
    """
    by_size: dict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(prepared):
        by_size[image.shape].append(index)
    outputs: dict[int, T] = {}
    for shape, indices in by_size.items():
        count = max(1, PASS_PIXELS // (shape[-2] * shape[-1]))
        for first in range(0, len(indices), count):
            group = indices[first : first + count]
            images = prepared[group[0]] if len(group) == 1 else torch.cat([prepared[index] for index in group])
            outputs |= dict(zip(group, run(images), strict=True))
    return [outputs[index] for index in range(len(prepared))]
