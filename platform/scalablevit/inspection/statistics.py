"""What a data set holds: counts of each split, and what its splits share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from scalablevit.config.data import CocoInstances, Data, MaskPairs, SplitName
from scalablevit.data.boxes import scale_factors
from scalablevit.data.coco import SIZES, Annotations
from scalablevit.data.labels import IGNORE, label_table
from scalablevit.data.names import shown
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.files import group_by_suffix
from scalablevit.inspection.check import Report
from scalablevit.inspection.counts import Counts

NAMED = 5
"""Files of a kind that are named."""


@dataclass(frozen=True, slots=True)
class SkippedFiles:
    """Files next to the images that are not read."""

    suffix: str
    """In lower case, with its dot; `/` for folders, empty where there is none."""
    count: int
    names: tuple[str, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Pixels of a split's masks."""

    by_class: tuple[int, ...]
    """In the order of the classes."""
    ignored: int
    by_value: dict[int, int]
    """Of each mask value that occurs."""

    @property
    def ignored_share(self) -> float:
        """Fraction of all pixels."""
        return self.ignored / max(1, self.ignored + sum(self.by_class))


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of a split's annotations. Crowds are counted in `annotations`, `crowds` and what the file itself says."""

    annotations: int
    """Records in the file."""
    objects: int
    """Boxes with an area in their image that are not crowds: what is learned and evaluated."""
    crowds: int
    empty_images: int
    """Images without an object."""
    by_size: dict[str, int]
    """Objects by COCO's sizes: annotated area in pixels of the original image."""
    by_scaled_size: dict[str, int]
    """The same for the area in the scaled image."""
    below_pixel: int
    """Objects less than a pixel wide or high in the scaled image: training leaves them out."""
    clipped: int
    """Boxes that reached out of their image."""
    dropped: int
    """Boxes without an area in their image."""
    reach_out: int
    """Boxes that reach out of their image, dropped or not."""
    corners: int
    """Boxes that lie inside their image when their numbers are read as x1, y1, x2, y2."""
    largest: float
    """The largest number in the file's boxes."""
    loose: int | None
    """Objects whose box disagrees with their polygons; None: not looked at."""
    loose_images: tuple[str, ...]
    """The first images with one."""
    flat: int | None
    """Objects whose polygons have no area; None: not looked at."""
    flat_images: tuple[str, ...]
    """The first images with one."""
    scaled_side: float | None = None
    """Median of the objects' sizes in the scaled image, sqrt(width * height) of the box in pixels; None: no object, or
    counted by an earlier version."""


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Counts of one split. What was not looked at, or does not apply to the source, is None."""

    samples: int
    looked_at: int
    """Samples whose files were looked at."""
    samples_by_class: tuple[int, ...] | None
    objects_by_class: tuple[int, ...] | None
    """Without crowds."""
    pixels: Pixels | None
    boxes: Boxes | None
    turned: int | None
    """Images whose height and width EXIF swaps."""
    turned_images: tuple[str, ...]
    """The first of them."""
    left_out: tuple[SkippedFiles, ...]

    @property
    def by_class(self) -> tuple[int, ...] | None:
        """Pixels, objects or samples of each class, as the source has them; None: not known."""
        if self.pixels is not None:
            return self.pixels.by_class
        return self.objects_by_class or self.samples_by_class


@dataclass(frozen=True, slots=True)
class SharedImages:
    """Validation images with the bytes of a training image."""

    count: int
    of: int
    """Validation images that could be read."""
    names: tuple[tuple[str, str], ...]
    """The first: validation image and training image."""


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Counts of both splits."""

    classes: tuple[str, ...]
    unit: str
    """What classes are counted in: images, objects or pixels."""
    train: SplitStatistics
    val: SplitStatistics
    shared: SharedImages | None
    """None: not known."""
    unknown: tuple[str, ...]
    """What was not looked at, a line each."""

    @property
    def splits(self) -> dict[SplitName, SplitStatistics]:
        """Both by name."""
        return {"train": self.train, "val": self.val}

    def absent(self, split: SplitName) -> tuple[int, ...]:
        """Return the numbers of the classes that a split has nothing of; none where that is not known."""
        counts = self.splits[split].by_class
        return () if counts is None else tuple(number for number, count in enumerate(counts) if not count)

    def to_json(self) -> str:
        """Return it as text for `from_json`."""
        return _STATISTICS.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "DataStatistics":
        """Read what `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return _STATISTICS.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"no statistics: {error}") from error


_STATISTICS = TypeAdapter(DataStatistics)
_UNITS = {"image_folder": "images", "tar_shards": "images", "mask_pairs": "pixels", "coco": "objects"}


def unit_of(source: str) -> str:
    """Return what classes are counted in, by `data.source`; of users' own sources images."""
    return _UNITS.get(source, "images")


def split_statistics(source: Source, data: Data, report: Report) -> SplitStatistics:
    """Count what a split holds.

    Args:
        source: the split.
        data: the recipe's data section.
        report: of the check; one without masks, or one that a deadline ended, leaves counts out.
    """
    labels = source.listing.arrays.get("labels")
    annotations, counts = source.annotations, report.counts
    return SplitStatistics(
        samples=len(source),
        looked_at=counts.looked_at,
        samples_by_class=None if labels is None else _by_class(labels, len(source.classes)),
        objects_by_class=None
        if annotations is None
        else _by_class(annotations.labels[~annotations.crowd], len(source.classes)),
        pixels=_pixels(data, source.classes, counts.pixels)
        if isinstance(data, MaskPairs) and report.complete and not report.wrong
        else None,
        boxes=_boxes(annotations, data, report)
        if annotations is not None and isinstance(data, CocoInstances)
        else None,
        turned=counts.turned if report.complete else None,
        turned_images=counts.turned_images,
        left_out=group_skipped(source.ignored),
    )


def shared_images(train: Source, val: Source, deadline: float | None = None) -> SharedImages:
    """Find validation images whose bytes are those of a training image.

    Raises:
        OutOfTime: shards have to be read for it, and the deadline (`time.monotonic()`) has passed.
    """
    train_sums, val_sums = train.image_sums(deadline), val.image_sums(deadline)
    heads, val_heads = _heads(train_sums), _heads(val_sums)
    readable = val_sums.any(axis=1)
    # few images are compared as Python objects: those of a million would take 100 MB
    places = {bytes(train_sums[k]): int(k) for k in np.flatnonzero(np.isin(heads, val_heads[readable]))}
    alike = np.flatnonzero(np.isin(val_heads, heads) & readable)
    pairs = [(int(i), places[key]) for i in alike if (key := bytes(val_sums[i])) in places]
    names = tuple((shown(val.names[i]), shown(train.names[k])) for i, k in pairs[:NAMED])
    return SharedImages(len(pairs), int(readable.sum()), names)


def group_skipped(names: tuple[str, ...]) -> tuple[SkippedFiles, ...]:
    """Group files by suffix, the most frequent first."""
    groups = sorted(group_by_suffix(names).items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(SkippedFiles(shown(kind), len(found), tuple(map(shown, found[:NAMED]))) for kind, found in groups)


def _heads(sums: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The first eight bytes of each sum."""
    return np.ascontiguousarray(sums[:, :8]).view(np.uint64)[:, 0]


def _by_class(labels: NDArray[np.integer], classes: int) -> tuple[int, ...]:
    if labels.ndim == 2:  # several classes a sample
        return tuple(labels.sum(axis=0, dtype=np.int64).tolist())
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _pixels(data: MaskPairs, classes: tuple[str, ...], by_value: tuple[int, ...]) -> Pixels | None:
    """Pixels by class from those by mask value; None where masks were not read."""
    if not by_value:
        return None
    counts, table = np.array(by_value), label_table(data, classes)
    by_class = tuple(int(counts[table == number].sum()) for number in range(len(classes)))
    return Pixels(
        by_class, int(counts[table == IGNORE].sum()), {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    )


def _boxes(annotations: Annotations, data: CocoInstances, report: Report) -> Boxes:
    objects = ~annotations.crowd
    owners = np.searchsorted(annotations.ends, np.arange(len(objects)), side="right")
    factors = scale_factors(annotations.sizes, data.short_side, data.long_side)[owners]
    sides = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]) * factors[:, None]
    given: Mapping[str, float] = annotations.box_counts
    counts: Counts = report.counts
    compared = report.complete and annotations.segmentations is not None
    return Boxes(
        annotations=int(given["annotations"]),
        objects=int(objects.sum()),
        crowds=int(annotations.crowd.sum()),
        empty_images=len(annotations.sizes) - len(np.unique(owners[objects])),
        by_size=_by_size(annotations.areas[objects]),
        by_scaled_size=_by_size((annotations.areas * factors**2)[objects]),
        below_pixel=int(((sides < 1).any(axis=1) & objects).sum()),
        clipped=int(given["clipped"]),
        dropped=int(given["dropped"]),
        reach_out=int(given["reach_out"]),
        corners=int(given["corners"]),
        largest=float(given["largest"]),
        loose=counts.loose_boxes if compared else None,
        loose_images=tuple(map(shown, counts.loose_images)),
        flat=counts.flat_polygons if compared else None,
        flat_images=tuple(map(shown, counts.flat_images)),
        scaled_side=float(np.median(np.sqrt(sides[objects].prod(axis=1)))) if objects.any() else None,
    )


def _by_size(areas: NDArray[np.floating]) -> dict[str, int]:
    """Objects of each size, each counted once: one whose area is a bound is of the smaller size."""
    highs = [high for _, high in SIZES.values()]
    counts = np.bincount(np.searchsorted(highs, areas).clip(max=len(highs) - 1), minlength=len(highs))
    return dict(zip(SIZES, counts.tolist(), strict=True))
