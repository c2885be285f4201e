"""Counts over the boxes of a file of annotations, compared with images, masks and scaled images."""

import json
from dataclasses import dataclass

import numpy as np
from hotcoco import mask as run_lengths
from numpy.typing import NDArray

from scalablevit.data.instances import compress

LOOSE_PIXELS = 3.0
"""A box disagrees with its mask where a side is more than so many pixels from the mask's bounds."""
LARGE_AREA = 1.5
"""An annotated area is too large above so many times that of its box, with a pixel more each way for rounding."""
_ROUNDING = 0.5  # pixels
_TO_CORNERS = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])
"""Makes x1, y1, x2, y2 of x, y, width, height, as a factor on the right."""


def count_boxes(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    areas: NDArray[np.float64],
    clipped: NDArray[np.bool_],
    kept: NDArray[np.bool_],
) -> dict[str, float]:
    """Return counts over boxes as they are in the file.

    Args:
        boxes: (n, 4) x, y, width, height in pixels, if the file is right.
        sizes: (n, 2) height and width of each box's image, in pixels.
        areas: (n,) annotated, in square pixels; 0: none.
        clipped: (n,) whether a box reaches out of its image.
        kept: (n,) whether a box has an area in its image.

    Returns:
        `annotations`: all boxes; `clipped`: those that are clipped and kept; `dropped`: those that are not kept;
        `reach_out`: those that are clipped, kept or not; `corners`: those that fit into their image when they are read
        as x1, y1, x2, y2; `largest`: the largest absolute number in all boxes. Of the boxes that are kept,
        `without_area`: those without an annotated area; `large_areas`: those with one above `LARGE_AREA`.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    corners = (
        (low >= -_ROUNDING).all(axis=1) & (high > low).all(axis=1) & (high <= sizes[:, ::-1] + _ROUNDING).all(axis=1)
    )
    with np.errstate(over="ignore"):
        large = areas > LARGE_AREA * (high + 1).prod(axis=1)
    return {
        "annotations": len(boxes),
        "clipped": int((clipped & kept).sum()),
        "dropped": int((~kept).sum()),
        "reach_out": int(clipped.sum()),
        "corners": int(corners.sum()),
        "largest": float(np.abs(boxes).max(initial=0.0)),
        "without_area": int((kept & (areas <= 0)).sum()),
        "large_areas": int((kept & large).sum()),
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of `compare_masks`, for n objects."""

    loose: NDArray[np.bool_]
    """(n,) whether the box disagrees with the bounds of the mask."""
    flat: NDArray[np.bool_]
    """(n,) whether the mask has no area."""


def compare_masks(segmentations: list[bytes], boxes: NDArray[np.float32], sizes: NDArray[np.int64]) -> Comparison:
    """Compare the boxes of objects with their polygons or run lengths.

    Areas of polygons are those of the shoelace formula.

    Args:
        segmentations: of n objects, as JSON.
        boxes: (n, 4) x1, y1, x2, y2 in pixels, clipped to the image.
        sizes: (n, 2) height and width of each object's image, in pixels.
    """
    count = len(segmentations)
    loose, flat = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    parsed = json.loads(b"[" + b",".join(segmentations) + b"]")
    if runs := [index for index, shape in enumerate(parsed) if isinstance(shape, dict)]:
        masks = [compress(parsed[i], (int(sizes[i, 0]), int(sizes[i, 1]))) for i in runs]
        corners = np.asarray(run_lengths.toBbox(masks)) @ _TO_CORNERS
        flat[runs] = np.asarray(run_lengths.area(masks)) == 0
        loose[runs] = (np.abs(corners - boxes[runs]) > LOOSE_PIXELS).any(axis=1) & ~flat[runs]
    polygons = [(index, polygon) for index, shape in enumerate(parsed) if isinstance(shape, list) for polygon in shape]
    if not polygons:
        return Comparison(loose, flat)
    owners = np.array([index for index, _ in polygons])
    points = np.concatenate([np.asarray(polygon, np.float64) for _, polygon in polygons]).reshape(-1, 2)
    lengths = np.array([len(polygon) // 2 for _, polygon in polygons])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    cross = points[:, 0] * points[following, 1] - points[:, 1] * points[following, 0]
    areas = np.bincount(owners, np.abs(np.add.reduceat(cross, starts)) / 2, minlength=count)
    known, firsts = np.unique(owners, return_index=True)
    limits = np.repeat(sizes[owners][:, ::-1], lengths, axis=0)
    inside = np.clip(points, 0, limits)
    bounds = np.concatenate(
        [np.minimum.reduceat(inside, starts[firsts]), np.maximum.reduceat(inside, starts[firsts])], axis=1
    )
    loose[known] = (np.abs(bounds - boxes[known]) > LOOSE_PIXELS).any(axis=1)
    flat[known] = areas[known] <= 0
    return Comparison(loose, flat)


def scale_factors(sizes: NDArray[np.int64], short_side: int, long_side: int) -> NDArray[np.float64]:
    """Return the factors (n,) by which images are scaled in evaluation: until one side reaches its length.

    Args:
        sizes: (n, 2) height and width, in pixels.
        short_side: length of the short side, in pixels.
        long_side: most pixels of the long side.
    """
    return np.asarray(np.minimum(short_side / sizes.min(axis=1), long_side / sizes.max(axis=1)), np.float64)
