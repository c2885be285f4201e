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
    """Height and width."""
    counts: bytes | str
    """In JSON they are text."""


@dataclass(frozen=True, slots=True)
class Instances:
    """What an image shows, in the pixels of the original image, as its annotations say after cleaning."""

    size: tuple[int, int]
    """Height and width of the image that the annotations are for."""
    boxes: NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2, clipped to the image."""
    labels: NDArray[np.int64]
    """(n,) class numbers from 0, in the order of `Source.classes` (category ids ascending)."""
    crowd: NDArray[np.bool_]
    """(n,) whether the box surrounds a group that nobody told apart."""
    areas: NDArray[np.float32]
    """(n,) COCO's `area`, that of the mask in pixels."""
    masks: list[RunLengths] | None
    """n masks; None without `data.instance_masks`."""


def to_run_lengths(segmentation: bytes, size: tuple[int, int]) -> RunLengths:
    """Compressed run lengths of an annotation's `segmentation`: polygons, or run lengths compressed or not.

    Args:
        segmentation: as JSON, checked by `data.coco`.
        size: height and width of the image.
    """
    height, width = size
    made: RunLengths = run_lengths.segmToRle(json.loads(segmentation), width, height)
    return made


def decode_masks(masks: list[RunLengths], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Masks as uint8 (n, height, width)."""
    if not masks:
        return np.zeros((0, *size), np.uint8)
    return np.ascontiguousarray(np.moveaxis(run_lengths.decode(masks), 2, 0))
