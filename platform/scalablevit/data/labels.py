"""Labels from mask values: 0..K-1 for the classes, 255 for ignored pixels; other values are refused."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import MaskPairs
from scalablevit.config.errors import UserError

IGNORE = 255
"""Label of ignored pixels."""
_OUTSIDE = 254  # label of values that are neither a class nor ignored


def label_table(data: MaskPairs, classes: Sequence[str]) -> NDArray[np.uint8]:
    """Return the label of each mask value, uint8 (256,), for `to_labels`.

    Mask values are class ids 0..K-1, or 1..K with `reduce_zero_label`, where 0 is ignored; `ignore_index` and 255 are
    always ignored.

    Args:
        data: the recipe's data section.
        classes: K names.

    Raises:
        UserError: more classes than 8-bit masks hold, or an ignored value that is also a class.
    """
    first = int(data.reduce_zero_label)
    if len(classes) > _OUTSIDE - first:
        raise UserError(
            f"{len(classes)} classes do not fit into 8-bit masks in addition to the ignored values",
            where="data.classes",
            fix=f"use at most {_OUTSIDE - first} classes",
        )
    if first <= data.ignore_index < first + len(classes):
        raise UserError(
            f"{data.ignore_index} is also the mask value of class {classes[data.ignore_index - first]!r}",
            where="data.ignore_index",
            fix="give a value that no class has (or reduce_zero_label: true, if the classes start at 1)",
        )
    table = np.full(256, _OUTSIDE, np.uint8)
    table[first : first + len(classes)] = np.arange(len(classes))
    table[[0] * first + [data.ignore_index, IGNORE]] = IGNORE
    return table


def to_labels(mask: NDArray[np.uint8], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the labels uint8 (height, width) of a mask's values (height, width).

    Args:
        mask: values as in the file.
        table: of `label_table`.

    Raises:
        ValueError: the mask has values that are neither a class nor ignored.
    """
    labels = np.asarray(cv2.LUT(mask, table), np.uint8)
    outside = labels == _OUTSIDE
    if outside.any():
        values = np.unique(mask[outside])
        known = np.flatnonzero(table < _OUTSIDE)
        raise ValueError(
            f"mask values {', '.join(map(str, values[:5]))}{', ...' if len(values) > 5 else ''} are no class "
            f"(classes have {known[0]}..{known[-1]})"
        )
    return labels


def size_mismatch(mask: Sequence[int], image: Sequence[int]) -> str:
    """Return the reason why a mask is refused whose (height, width), in pixels, is not its image's."""
    return f"the mask is {mask[1]} x {mask[0]} pixels, its image {image[1]} x {image[0]} (width x height)"


def annotated_size_mismatch(image: Sequence[int], annotated: Sequence[int]) -> str:
    """Return the reason why an image is refused whose (height, width), in pixels, is not that of its annotations."""
    return (
        f"the image is {image[1]} x {image[0]} pixels, its annotations are for {annotated[1]} x {annotated[0]} "
        "(width x height)"
    )
