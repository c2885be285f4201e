"""The objects of an image: boxes, classes and masks."""

import json
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from hotcoco import mask as run_lengths
from numpy.typing import NDArray


class RunLengths(TypedDict):
    """COCO's compressed run lengths of a mask."""

    size: list[int]
    """Height and width, in pixels."""
    counts: bytes | str
    """COCO's encoding of the lengths; text in JSON."""


@dataclass(frozen=True, slots=True)
class Instances:
    """The n annotated objects of an image after cleaning, in the original image's pixels."""

    size: tuple[int, int]
    """Height and width of the original image, in pixels."""
    boxes: NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2, clipped to the image."""
    labels: NDArray[np.int64]
    """(n,) class indices from 0, in the order of `Source.classes` (category ids ascending)."""
    crowd: NDArray[np.bool_]
    """(n,) whether the box surrounds a group of objects that are not annotated one by one."""
    areas: NDArray[np.float32]
    """(n,) COCO's `area` in square pixels."""
    masks: list[RunLengths] | None
    """n masks; None without `data.instance_masks`."""


def to_run_lengths(segmentation: bytes, size: tuple[int, int]) -> RunLengths:
    """Return compressed run lengths of an annotation's `segmentation`: polygons, or run lengths compressed or not.

    Args:
        segmentation: as JSON, checked by `data.coco_records`.
        size: height and width of the image, pixels.
    """
    return compress(json.loads(segmentation), size)


def compress(segmentation: Any, size: tuple[int, int]) -> RunLengths:
    """Return compressed run lengths of a `segmentation` read from JSON; arguments as to `to_run_lengths`."""
    masks: list[RunLengths] | RunLengths = run_lengths.frPyObjects(segmentation, *size)
    merged: RunLengths = run_lengths.merge(masks) if isinstance(masks, list) else masks
    return merged


def damage_of(counts: str, size: tuple[int, int]) -> str | None:
    """Return what is wrong with compressed run lengths, None where they are a mask of `size`.

    Args:
        counts: COCO's encoding of the lengths.
        size: height and width, pixels.
    """
    height, width = size
    try:
        run_lengths.rle_from_string(counts, height, width)
    except (ValueError, OverflowError):
        return "cannot be read"
    try:  # the library refuses run lengths of too many pixels, but not of too few
        run_lengths.rle_from_string(counts, 1, height * width - 1)
    except (ValueError, OverflowError):
        return None
    return "do not add up to its size"


def decode_masks(masks: list[RunLengths], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return n masks as uint8 (n, height, width), 0 or 1.

    Args:
        masks: all of one size.
        size: that height and width, pixels.
    """
    if not masks:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(np.moveaxis(run_lengths.decode(masks), 2, 0))
