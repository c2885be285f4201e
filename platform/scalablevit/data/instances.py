"""The objects of an image: boxes, classes and masks."""

import json
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from faster_coco_eval import mask as run_lengths
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
    height, width = size
    compressed: RunLengths = run_lengths.segmToRle(json.loads(segmentation), width, height)
    return compressed


def decode_masks(masks: list[RunLengths], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return n masks as uint8 (n, height, width), 0 or 1.

    Args:
        masks: all of one size.
        size: that height and width, pixels.
    """
    if not masks:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(np.moveaxis(run_lengths.decode(masks), 2, 0))
