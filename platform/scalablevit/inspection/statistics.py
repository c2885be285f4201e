"""Statistics of a data set: counts over each split, and images that the splits share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from scalablevit.config.data import CocoInstances, Data, MaskPairs, SplitName
from scalablevit.data.boxes import scale_factors
from scalablevit.data.coco import SIZES, Annotations
from scalablevit.data.labels import IGNORE, label_table
from scalablevit.data.names import printable
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.files import group_by_suffix
from scalablevit.data.sources.mask_pairs import MaskPairsSource
from scalablevit.inspection.check import Report
from scalablevit.inspection.counts import Counts

NAMED = 5
"""Most files of a kind that are listed by name."""
_COPY = ".rf."  # Roboflow's names: that of the source, this, and a sum of the augmented copy


@dataclass(frozen=True, slots=True)
class SkippedFiles:
    """Files next to the images that are not read, of one suffix."""

    suffix: str
    """In lower case, with its dot; `/` for hidden and system folders; empty for files without a suffix."""
    count: int
    names: tuple[str, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Numbers of pixels in a split's masks."""

    by_class: tuple[int, ...]
    """In the order of the classes."""
    ignored: int
    """Ignored pixels."""
    by_value: dict[int, int]
    """By mask value, for values that occur."""
    values: tuple[int, ...] = ()
    """Mask value of each class; empty in files of earlier versions, whose classes are in the order of the values."""
    recolored: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Mask values of classes that have several colours in the masks' palettes, with two colours and masks."""

    @property
    def ignored_share(self) -> float:
        """Return the fraction of all pixels that are ignored, 0 to 1."""
        return self.ignored / max(1, self.ignored + sum(self.by_class))


@dataclass(frozen=True, slots=True)
class Boxes:
    """Counts over the boxes of a split's annotations.

    Crowds are counted in `annotations` and `crowds`, and in `clipped` to `largest`, which are about the whole file.
    """

    annotations: int
    """Records in the file."""
    objects: int
    """Boxes with an area in their image that are not crowds: those that training and evaluation use."""
    crowds: int
    """Boxes of COCO's `iscrowd`, and objects without a mask where masks are read."""
    empty_images: int
    """Images without an object."""
    by_size: dict[str, int]
    """Objects by COCO's sizes small, medium and large: annotated area in square pixels of the original image."""
    by_scaled_size: dict[str, int]
    """The same for the area in the image as evaluation scales it."""
    below_pixel: int
    """Objects less than a pixel wide or high in the scaled image: training drops them."""
    clipped: int
    """Boxes with an area in their image that were clipped to it."""
    dropped: int
    """Boxes without an area in their image."""
    reach_out: int
    """Boxes that reach out of their image, dropped or not."""
    corners: int
    """Boxes that fit into their image when their numbers are read as x1, y1, x2, y2."""
    largest: float
    """The largest absolute number in the file's boxes, pixels if the file is right."""
    loose: int | None
    """Objects whose box disagrees with their mask; None: not checked."""
    loose_images: tuple[str, ...]
    """The first images with one."""
    flat: int | None
    """Objects whose mask has no area; None: not checked."""
    flat_images: tuple[str, ...]
    """The first images with one."""
    scaled_side: float | None = None
    """Median of the objects' sizes in the scaled image, sqrt(width * height) of the box in pixels; None: no object, or
    counted by an earlier version."""
    without_area: int = 0
    """Instances whose `area` is missing or 0: that of their box is used."""
    large_areas: int = 0
    """Instances whose `area` is larger than their box, see `data.boxes.LARGE_AREA`."""
    doubled: int = 0
    """Objects with image, class and box of an earlier object."""
    doubled_images: tuple[str, ...] = ()
    """The first images with one."""


@dataclass(frozen=True, slots=True)
class SplitStatistics:
    """Counts over one split; None: not checked, or not applicable to the source."""

    samples: int
    looked_at: int
    """Samples whose files were checked."""
    samples_by_class: tuple[int, ...] | None
    objects_by_class: tuple[int, ...] | None
    """Without crowds."""
    pixels: Pixels | None
    boxes: Boxes | None
    turned: int | None
    """Images whose height and width EXIF's orientation swaps."""
    turned_images: tuple[str, ...]
    """The first of them."""
    left_out: tuple[SkippedFiles, ...]
    """Files that are not read, the most frequent suffix first."""
    flipped: int | None = None
    """Images with a mask or boxes that EXIF's orientation turns or mirrors without a change of their size."""
    flipped_images: tuple[str, ...] = ()
    """The first of them."""
    paged: int | None = None
    """Images and masks with pages or frames after the first one, which alone is read."""
    paged_files: tuple[str, ...] = ()
    """The first of them."""

    @property
    def by_class(self) -> tuple[int, ...] | None:
        """Return pixels, objects or samples of each class, whichever the source has; None: not known."""
        if self.pixels is not None:
            return self.pixels.by_class
        return self.objects_by_class or self.samples_by_class


@dataclass(frozen=True, slots=True)
class SharedImages:
    """Validation images whose bytes are those of a training image."""

    count: int
    of: int
    """Validation images that could be read."""
    names: tuple[tuple[str, str], ...]
    """The first pairs of validation image and training image."""
    contradictions: int = 0
    """Images whose bytes are those of an image of another class in the same split."""
    contradicting: tuple[tuple[str, str], ...] = ()
    """The first pairs of them."""
    copies: int = 0
    """Validation images whose name before Roboflow's `.rf.` is that of a training image, as of augmented copies."""
    copied: tuple[str, ...] = ()
    """The first of them."""


@dataclass(frozen=True, slots=True)
class DataStatistics:
    """Counts over both splits."""

    classes: tuple[str, ...]
    unit: str
    """Unit of the counts by class: images, objects or pixels."""
    train: SplitStatistics
    val: SplitStatistics
    shared: SharedImages | None
    """None: not known."""
    unknown: tuple[str, ...]
    """What was not checked, one line each."""

    @property
    def splits(self) -> dict[SplitName, SplitStatistics]:
        """Return both splits by name."""
        return {"train": self.train, "val": self.val}

    def absent(self, split: SplitName) -> tuple[int, ...]:
        """Return the indices of classes that do not occur in a split; empty where that is not known."""
        counts = self.splits[split].by_class
        return () if counts is None else tuple(index for index, count in enumerate(counts) if not count)

    def to_json(self) -> str:
        """Return the statistics as JSON text."""
        return _STATISTICS.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "DataStatistics":
        """Return the statistics that `to_json` wrote.

        Raises:
            ValueError: the text is something else.
        """
        try:
            return _STATISTICS.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"no statistics: {error}") from error


_STATISTICS = TypeAdapter(DataStatistics)


def unit_of(data: Data) -> str:
    """Return the unit of counts by class for a data section, also one of users' own: images, objects or pixels."""
    if isinstance(data, MaskPairs):
        return "pixels"
    return "objects" if isinstance(data, CocoInstances) else "images"


def split_statistics(source: Source, data: Data, report: Report) -> SplitStatistics:
    """Return the statistics of a split.

    Args:
        source: the split.
        data: the recipe's data section.
        report: of its check; without masks, or after a deadline, some counts are None.
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
        pixels=_pixels(source, data, counts)
        if isinstance(data, MaskPairs) and report.complete and not report.wrong
        else None,
        boxes=_boxes(annotations, data, report)
        if annotations is not None and isinstance(data, CocoInstances)
        else None,
        turned=counts.turned if report.complete else None,
        turned_images=counts.turned_images,
        left_out=group_skipped(source.ignored),
        flipped=counts.flipped if report.complete else None,
        flipped_images=counts.flipped_images,
        paged=counts.paged if report.complete else None,
        paged_files=counts.paged_files,
    )


def shared_images(train: Source, val: Source, deadline: float | None = None) -> SharedImages:
    """Find validation images whose bytes are those of a training image.

    Args:
        train: the training split.
        val: the validation split.
        deadline: time of `time.monotonic()`, in seconds; None: no deadline.

    Raises:
        OutOfTime: shards have to be read, and the deadline has passed.
    """
    train_sums, val_sums = train.image_sums(deadline), val.image_sums(deadline)
    heads, val_heads = _heads(train_sums), _heads(val_sums)
    readable = val_sums.any(axis=1)
    # few images are compared as Python objects: those of a million would take 100 MB
    indices = {bytes(train_sums[k]): int(k) for k in np.flatnonzero(np.isin(heads, val_heads[readable]))}
    alike = np.flatnonzero(np.isin(val_heads, heads) & readable)
    pairs = [(int(i), indices[key]) for i in alike if (key := bytes(val_sums[i])) in indices]
    names = tuple((printable(val.names[i]), printable(train.names[k])) for i, k in pairs[:NAMED])
    contradicting = [*_contradictions(train, train_sums), *_contradictions(val, val_sums)]
    pictures = {name.partition(_COPY)[0] for name in _copies(train)}
    copies = [printable(name) for name in _copies(val) if name.partition(_COPY)[0] in pictures]
    return SharedImages(
        len(pairs), int(readable.sum()), names,
        len(contradicting), tuple(contradicting[:NAMED]), len(copies), tuple(copies[:NAMED]),
    )  # fmt: skip


def _copies(source: Source) -> list[str]:
    """Return the names that Roboflow has given; a million others are not decoded for that."""
    found = _COPY.encode() in source.names.block.tobytes()
    return [name for name in source.names if _COPY in name] if found else []


def _contradictions(source: Source, sums: NDArray[np.uint8]) -> list[tuple[str, str]]:
    """Return the names of images with the same sum, next to each other by class, and of different classes."""
    labels = source.listing.arrays.get("labels")
    if labels is None or labels.ndim == 2:
        return []
    heads = _heads(sums)
    order = np.lexsort((labels, heads))
    one, other = order[:-1], order[1:]
    differ = np.flatnonzero((heads[one] == heads[other]) & (labels[one] != labels[other]) & sums[one].any(axis=1))
    pairs = [(int(one[i]), int(other[i])) for i in differ if (sums[one[i]] == sums[other[i]]).all()]
    return [(printable(source.names[i]), printable(source.names[k])) for i, k in pairs]


def group_skipped(names: tuple[str, ...]) -> tuple[SkippedFiles, ...]:
    """Group files by suffix, the most frequent first."""
    groups = sorted(group_by_suffix(names).items(), key=lambda group: (-len(group[1]), group[0]))
    return tuple(
        SkippedFiles(printable(kind), len(group), tuple(map(printable, group[:NAMED]))) for kind, group in groups
    )


def _heads(sums: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the first eight bytes of each sum (n, 32) as one number, (n,)."""
    return np.ascontiguousarray(sums[:, :8]).view(np.uint64)[:, 0]


def _by_class(labels: NDArray[np.integer], classes: int) -> tuple[int, ...]:
    """Return the number of labels of each class; `labels` is (n,), or (n, classes) of 0 and 1."""
    if labels.ndim == 2:  # samples with several classes
        return tuple(labels.sum(axis=0, dtype=np.int64).tolist())
    return tuple(np.bincount(labels, minlength=classes).tolist())


def _pixels(source: Source, data: MaskPairs, of_check: Counts) -> Pixels | None:
    """Return pixels by class from those by mask value; None where masks were not read."""
    by_value = of_check.pixels
    if not by_value:
        return None
    # a model's order of the classes may be another one than that of the mask values
    table = source.table if isinstance(source, MaskPairsSource) else label_table(data, source.classes)
    counts, classes = np.array(by_value), range(len(source.classes))
    colors: dict[int, tuple[str, ...]] = {}
    for value, color, name in of_check.colors:
        if table[value] != IGNORE:
            colors[value] = (*colors.get(value, ()), f"{color} in {name}")
    return Pixels(
        by_class=tuple(int(counts[table == index].sum()) for index in classes),
        ignored=int(counts[table == IGNORE].sum()),
        by_value={int(i): int(counts[i]) for i in np.flatnonzero(counts)},
        values=tuple(int(np.flatnonzero(table == index)[0]) for index in classes),
        recolored={value: found for value, found in colors.items() if len(found) > 1},
    )


def _boxes(annotations: Annotations, data: CocoInstances, report: Report) -> Boxes:
    objects = ~annotations.crowd
    owners = np.searchsorted(annotations.ends, np.arange(len(objects)), side="right")
    factors = scale_factors(annotations.sizes, data.short_side, data.long_side)[owners]
    sides = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]) * factors[:, None]
    of_file: Mapping[str, float] = annotations.box_counts
    counts: Counts = report.counts
    described = np.column_stack([owners, annotations.labels, annotations.boxes])[objects]
    doubled = np.delete(owners[objects], np.unique(described, axis=0, return_index=True)[1])
    compared = report.complete and annotations.segmentations is not None
    return Boxes(
        annotations=int(of_file["annotations"]),
        objects=int(objects.sum()),
        crowds=int(annotations.crowd.sum()),
        empty_images=len(annotations.sizes) - len(np.unique(owners[objects])),
        by_size=_by_size(annotations.areas[objects]),
        by_scaled_size=_by_size((annotations.areas * factors**2)[objects]),
        below_pixel=int(((sides < 1).any(axis=1) & objects).sum()),
        clipped=int(of_file["clipped"]),
        dropped=int(of_file["dropped"]),
        reach_out=int(of_file["reach_out"]),
        corners=int(of_file["corners"]),
        largest=float(of_file["largest"]),
        loose=counts.loose_boxes if compared else None,
        loose_images=tuple(map(printable, counts.loose_images)),
        flat=counts.flat_masks if compared else None,
        flat_images=tuple(map(printable, counts.flat_images)),
        scaled_side=float(np.median(np.sqrt(sides[objects].prod(axis=1)))) if objects.any() else None,
        without_area=int(of_file.get("without_area", 0)),
        large_areas=int(of_file.get("large_areas", 0)),
        doubled=len(doubled),
        doubled_images=tuple(printable(annotations.names[int(i)]) for i in np.unique(doubled)[:NAMED]),
    )


def _by_size(areas: NDArray[np.floating]) -> dict[str, int]:
    """Return the number of objects of each size, by areas (n,); an area that is a bound counts as the smaller size."""
    highs = [high for _, high in SIZES.values()]
    counts = np.bincount(np.searchsorted(highs, areas).clip(max=len(highs) - 1), minlength=len(highs))
    return dict(zip(SIZES, counts.tolist(), strict=True))
