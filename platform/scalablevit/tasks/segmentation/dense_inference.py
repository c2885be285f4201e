"""Label maps from images: whole images, sliding windows and averages over views, in bounded memory."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.config.task import Sliding

Size = tuple[int, int]
"""Height and width in pixels."""
Network = Callable[[Tensor], Tensor]
"""Normalized images (B, 3, h, w) to logits (B, classes, about h / 4, about w / 4)."""
T = TypeVar("T")

CHUNK_ELEMENTS = 2**26
"""Most elements of a tensor at an image's full size, unless one class alone has more: 256 MiB of float32."""


@dataclass(frozen=True)
class View:
    """The network's logits for one image, at one scale."""

    logits: Tensor
    """float32 (classes, h, w), at the network's resolution or at `size`."""
    size: Size
    """Size of the network's input image."""

    def at(self, size: Size, classes: slice) -> Tensor:
        """Return the logits of some classes at a size, (classes, *size).

        They are interpolated bilinearly to the image's size first, then to `size`, as in mmseg.
        """
        logits = self.logits[None, classes]
        for target in (self.size, size):
            if logits.shape[-2:] != target:
                logits = F.interpolate(logits, target, mode="bilinear", align_corners=False)
        return logits[0]

    def mirrored(self) -> "View":
        """Return the view with left and right exchanged."""
        return View(self.logits.flip(-1), self.size)


def iter_views(
    network: Network, images: Sequence[Tensor], sliding: Sliding | None, max_pixels: int
) -> Iterator[tuple[int, View]]:
    """Yield the index and the view of each image, in an order that lets images of equal size share a forward pass.

    Only the logits at the network's resolution (1/16 of the pixels) are held for several images at once; with sliding
    windows the summed logits of one image at its own size.

    Args:
        network: the model in eval mode.
        images: normalized, each (3, h, w), of any sizes.
        sliding: windows; None: whole images.
        max_pixels: most pixels of the images or windows of one forward pass, unless one alone has more.
    """
    if sliding is not None:
        for index, image in enumerate(images):
            yield index, _slide(network, image, sliding, max_pixels)
        return
    by_size: dict[Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        by_size[_size(image)].append(index)
    for size, indices in by_size.items():
        for group in _groups(indices, size, max_pixels):
            logits = network(torch.stack([images[index] for index in group])).float()
            for index, of_image in zip(group, logits, strict=True):
                yield index, View(of_image, size)


def _slide(network: Network, image: Tensor, sliding: Sliding, max_pixels: int) -> View:
    """Return logits averaged over overlapping windows, float32 at the image's size; the last ones end at its edges."""
    height, width = _size(image)
    window = min(sliding.window, height), min(sliding.window, width)
    corners = [
        (top, left)
        for top in _starts(height, window[0], sliding.stride)
        for left in _starts(width, window[1], sliding.stride)
    ]
    total = counts = image.new_zeros((1, height, width), dtype=torch.float32)
    for group in _groups(corners, window, max_pixels):
        boxes = [(slice(top, top + window[0]), slice(left, left + window[1])) for top, left in group]
        logits = network(torch.stack([image[:, rows, columns] for rows, columns in boxes])).float()
        if total is counts:
            total = logits.new_zeros((logits.shape[1], height, width))
        for (rows, columns), of_window in zip(boxes, logits, strict=True):
            total[:, rows, columns] += View(of_window, window).at(window, slice(None))
            counts[:, rows, columns] += 1
    return View(total.div_(counts), (height, width))


def best_labels(view: View, size: Size, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Return the class with the largest logit at each pixel, uint8 (height, width).

    Logits are interpolated to the full size a few classes at a time. So the memory besides `view.logits` is a few times
    that of `chunk_elements`, plus a few maps of one value per pixel; it does not grow with the number of classes. The
    result does not depend on `chunk_elements`.

    Args:
        view: of the image.
        size: height and width of the result.
        chunk_elements: most elements of a tensor at the full size.
    """
    return _argmax(view.at(size, classes) for classes in _chunks(view, size, chunk_elements))


def averaged_labels(views: Sequence[View], size: Size, chunk_elements: int = CHUNK_ELEMENTS) -> Tensor:
    """Return the class with the largest mean probability over all views at each pixel, uint8 (height, width).

    Softmax comes before the average, at the full size, as in mmseg's SegTTAModel. Memory is that of `best_labels` plus
    one map for each view.

    Args:
        views: of one image, at least one.
        size: height and width of the result.
        chunk_elements: most elements of a tensor at the full size.
    """
    normalized = [(view, _log_sum_exp(view, size, chunk_elements)) for view in views]
    largest = max(views, key=lambda view: view.size[0] * view.size[1])

    def sum_probabilities(classes: slice) -> Tensor:
        return reduce(Tensor.add_, ((view.at(size, classes) - normalizer).exp_() for view, normalizer in normalized))

    return _argmax(sum_probabilities(classes) for classes in _chunks(largest, size, chunk_elements))


def _log_sum_exp(view: View, size: Size, chunk_elements: int) -> Tensor:
    """Return the logarithm of softmax's denominator at each pixel, (height, width)."""
    chunks = _chunks(view, size, chunk_elements)
    total = view.at(size, next(chunks)).logsumexp(dim=0)
    for classes in chunks:
        total = torch.logaddexp(total, view.at(size, classes).logsumexp(dim=0))
    return total


def _argmax(chunks: Iterable[Tensor]) -> Tensor:
    """Return the index of the largest value over all classes, uint8 (height, width).

    Args:
        chunks: values of consecutive classes, each (classes, height, width).
    """
    first = 0
    best: Tensor | None = None
    labels = torch.empty(0, dtype=torch.uint8)
    for chunk in chunks:
        values, indices = chunk.max(dim=0)
        in_chunk = (indices + first).to(torch.uint8)
        if best is None:
            best, labels = values, in_chunk
        else:
            better = values > best
            best, labels = torch.where(better, values, best), torch.where(better, in_chunk, labels)
        first += len(chunk)
    return labels


def _chunks(view: View, size: Size, chunk_elements: int) -> Iterator[slice]:
    """Return slices of classes whose logits are interpolated together."""
    pixels = max(size[0] * size[1], view.size[0] * view.size[1])
    count = max(1, chunk_elements // pixels)
    return (slice(first, first + count) for first in range(0, len(view.logits), count))


def _groups(items: list[T], size: Size, max_pixels: int) -> Iterator[list[T]]:
    count = max(1, max_pixels // (size[0] * size[1]))
    return (items[first : first + count] for first in range(0, len(items), count))


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along one side: every `stride` pixels; the last window ends at the side's end."""
    return [*range(0, length - window, stride), length - window]


def _size(image: Tensor) -> Size:
    return image.shape[-2], image.shape[-1]
