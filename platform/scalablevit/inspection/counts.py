"""Counts over the contents of samples, made by the check of every file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.boxes import compare_masks
from scalablevit.data.coco import Annotations

VALUES = 256
"""Number of values of an 8-bit mask."""
_NAMED = 5
_COLORS = 2  # of a mask value: as many as show that it has several

ColoredValue: TypeAlias = tuple[int, str, str]
"""A mask value, its colour in a palette, and the first mask that has it in this colour."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts over the samples that were checked; `+` adds those of further samples."""

    looked_at: int = 0
    """Samples that were checked."""
    turned: int = 0
    """Images whose height and width EXIF's orientation swaps."""
    turned_images: tuple[str, ...] = ()
    """The first of them."""
    flipped: int = 0
    """Images with a mask or boxes that EXIF's orientation turns or mirrors without a change of their size."""
    flipped_images: tuple[str, ...] = ()
    """The first of them."""
    paged: int = 0
    """Images and masks with pages or frames after the first one, which alone is read."""
    paged_files: tuple[str, ...] = ()
    """The first of them."""
    pixels: tuple[int, ...] = ()
    """(256,) pixels by mask value; empty: masks were not read."""
    colors: tuple[ColoredValue, ...] = ()
    """The first two colours of each mask value in the masks' palettes."""
    loose_boxes: int = 0
    """Objects whose box disagrees with their mask, see `data.boxes.LOOSE_PIXELS`."""
    loose_images: tuple[str, ...] = ()
    """The first images with such an object."""
    flat_masks: int = 0
    """Objects whose mask has no area."""
    flat_images: tuple[str, ...] = ()
    """The first images with such an object."""

    def __add__(self, other: "Counts") -> "Counts":
        pixels = self.pixels or other.pixels
        if self.pixels and other.pixels:
            pixels = tuple(a + b for a, b in zip(self.pixels, other.pixels, strict=True))
        return Counts(
            looked_at=self.looked_at + other.looked_at,
            turned=self.turned + other.turned,
            turned_images=(self.turned_images + other.turned_images)[:_NAMED],
            flipped=self.flipped + other.flipped,
            flipped_images=(self.flipped_images + other.flipped_images)[:_NAMED],
            paged=self.paged + other.paged,
            paged_files=(self.paged_files + other.paged_files)[:_NAMED],
            pixels=pixels,
            colors=_first_colors((*self.colors, *other.colors)),
            loose_boxes=self.loose_boxes + other.loose_boxes,
            loose_images=(self.loose_images + other.loose_images)[:_NAMED],
            flat_masks=self.flat_masks + other.flat_masks,
            flat_images=(self.flat_images + other.flat_images)[:_NAMED],
        )


@dataclass
class Counter:
    """Collects counts sample by sample."""

    pixels: NDArray[np.int64] | None = None
    """(256,) pixels by mask value; None: no mask was added."""
    looked_at: int = 0
    """Samples that were checked."""
    turned: list[str] = field(default_factory=list)
    """Images, as in `Counts`."""
    flipped: list[str] = field(default_factory=list)
    """Images, as in `Counts`."""
    paged: list[str] = field(default_factory=list)
    """Images and masks, as in `Counts`."""
    colors: tuple[ColoredValue, ...] = ()
    """As in `Counts`."""

    def add_mask(self, mask: NDArray[np.uint8], palette: Sequence[int] = (), name: str = "") -> None:
        """Count the pixels of a mask (height, width) by their value, and note the colours of its values."""
        of_mask = np.bincount(mask.ravel(), minlength=VALUES)
        if palette:
            values = np.flatnonzero(of_mask).tolist()
            colored = [(i, str(tuple(palette[3 * i : 3 * i + 3])), name) for i in values]
            self.colors = _first_colors((*self.colors, *colored))
        self.pixels = of_mask if self.pixels is None else self.pixels + of_mask

    def counts(self, annotations: Annotations | None, part: range) -> Counts:
        """Return the counts of the samples, with those of their objects if there are annotations.

        Args:
            annotations: of the split.
            part: indices of the samples that were checked.
        """
        counts = Counts(
            looked_at=self.looked_at,
            turned=len(self.turned),
            turned_images=tuple(self.turned[:_NAMED]),
            flipped=len(self.flipped),
            flipped_images=tuple(self.flipped[:_NAMED]),
            paged=len(self.paged),
            paged_files=tuple(self.paged[:_NAMED]),
            pixels=() if self.pixels is None else tuple(self.pixels.tolist()),
            colors=self.colors,
        )
        if annotations is None or annotations.segmentations is None or not len(part):
            return counts
        return counts + _object_counts(annotations, part)


def _first_colors(colored: Iterable[ColoredValue]) -> tuple[ColoredValue, ...]:
    kept: dict[int, dict[str, str]] = {}
    for value, color, name in colored:
        of_value = kept.setdefault(value, {})
        if len(of_value) < _COLORS:
            of_value.setdefault(color, name)
    return tuple((value, color, name) for value, names in kept.items() for color, name in names.items())


def _object_counts(annotations: Annotations, part: range) -> Counts:
    ends, text_ends = annotations.ends, annotations.segmentation_ends
    first = int(ends[part.start - 1]) if part.start else 0
    last = int(ends[part.stop - 1])
    starts = [int(text_ends[k - 1]) if k else 0 for k in range(first, last)]
    texts = [
        annotations.segmentations[start : int(end)].tobytes()  # type: ignore[index]  # the caller has checked
        for start, end in zip(starts, text_ends[first:last], strict=True)
    ]
    owners = np.searchsorted(ends, np.arange(first, last), side="right")
    compared = compare_masks(texts, annotations.boxes[first:last], annotations.sizes[owners])
    objects = ~annotations.crowd[first:last]
    loose, flat = compared.loose & objects, compared.flat & objects
    return Counts(
        loose_boxes=int(loose.sum()),
        loose_images=_names(annotations, owners[loose]),
        flat_masks=int(flat.sum()),
        flat_images=_names(annotations, owners[flat]),
    )


def _names(annotations: Annotations, images: NDArray[np.intp]) -> tuple[str, ...]:
    return tuple(annotations.names[int(i)] for i in np.unique(images)[:_NAMED])
