"""Annotations in COCO's instances format: cleaned, and kept as arrays."""

import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.boxes import count_boxes
from scalablevit.data.coco_records import Record, Records, has_mask, polygons_of, read_records
from scalablevit.data.instances import Instances, to_run_lengths
from scalablevit.data.sources.annotated_names import ImageFiles
from scalablevit.data.sources.listing import Facts, Listing, Names

CLIPPED_PIXELS = 0.5
"""Boxes that reach further than this out of their image are counted; rounding is not worth a word."""
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}
"""COCO's bounds of an object's area in pixels of the original image, both included, by the metric's name for them."""
_ARRAYS = ("sizes", "ends", "boxes", "labels", "crowd", "areas", "segmentations", "segmentation_ends")
"""Those of `Annotations`' fields that are arrays."""


@dataclass(frozen=True)
class Annotations:
    """The instances of a split, image by image in the order of image ids.

    Kept as arrays and one block of bytes: as Python objects those of COCO's training split would cost every process
    gigabytes.
    """

    categories: tuple[tuple[int, str], ...]
    """Id and name, by ascending id; a class number is the place in here."""
    names: Names
    """Image files, relative to the folder of images."""
    sizes: NDArray[np.int64]
    """(images, 2) height and width."""
    notes: tuple[str, ...]
    """What cleaning did, a line each."""
    box_counts: dict[str, float]
    """Of `count_boxes`, over all boxes of the file."""
    digest: str
    """SHA-256 of the file."""
    ends: NDArray[np.int64]
    """(images,) where each image's instances end."""
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]
    segmentations: NDArray[np.uint8] | None
    """JSON of all as bytes, one after another; None when masks are not read."""
    segmentation_ends: NDArray[np.int64]
    without_mask: int = 0
    """Objects without a mask although masks are read; see `read_annotations`."""

    def facts(self) -> Facts:
        """What `from_listing` reads as well as `arrays`."""
        return {
            "categories": self.categories,
            "notes": self.notes,
            "box_counts": self.box_counts,
            "annotations_sha256": self.digest,
            "without_mask": self.without_mask,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a listing, where other arrays may have the same names."""
        arrays = {f"objects_{name}": getattr(self, name) for name in _ARRAYS}
        return {**self.names.arrays(), **{name: array for name, array in arrays.items() if array is not None}}

    @classmethod
    def from_listing(cls, listing: Listing) -> Self:
        """The annotations of a listing, as arrays that may be mapped."""
        arrays: dict[str, Any] = {name: listing.arrays.get(f"objects_{name}") for name in _ARRAYS}
        return cls(
            categories=tuple((number, name) for number, name in listing.facts["categories"]),
            names=Names.from_listing(listing),
            notes=tuple(listing.facts["notes"]),
            box_counts=listing.facts["box_counts"],
            digest=listing.facts["annotations_sha256"],
            without_mask=listing.facts["without_mask"],
            **arrays,
        )

    def absent_sizes(self) -> tuple[str, ...]:
        """Those of `SIZES` that no object has, crowds left out: COCO's metric has no value for them."""
        areas = self.areas[~self.crowd]
        return tuple(size for size, (low, high) in SIZES.items() if not ((areas >= low) & (areas <= high)).any())

    def of_image(self, i: int) -> Instances:
        """The instances of one image."""
        part = slice(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        size = int(self.sizes[i, 0]), int(self.sizes[i, 1])
        masks = None
        if self.segmentations is not None:
            ends = self.segmentation_ends
            starts = [int(ends[k - 1]) if k else 0 for k in range(part.start, part.stop)]
            texts = [self.segmentations[a : int(b)].tobytes() for a, b in zip(starts, ends[part], strict=True)]
            masks = [to_run_lengths(text, size) for text in texts]
        return Instances(size, self.boxes[part], self.labels[part], self.crowd[part], self.areas[part], masks)


def read_annotations(
    file: Path, where: str, *, masks: bool, max_bad_fraction: float = 0.0, files: ImageFiles | None = None
) -> Annotations:
    """Read a file of instances in COCO's format.

    Boxes are clipped to their image; those without area are dropped. Both are counted in `notes`. Whole numbers given
    as text ("17", 17.0) are read as numbers, ids of images and annotations may be any text, and a null is read as if
    the key were absent.

    With `masks`, a few objects may lack one (`segmentation` missing, empty or without a polygon of three points): up to
    `max_bad_fraction` of the objects or `TOLERATED_WITHOUT_MASK`, whichever is more, but never all. They are counted in
    `notes` and become crowds whose mask is their box: training learns nothing from a crowd and evaluation counts
    predictions in it neither as right nor as wrong. For training they are background, as all crowds are.

    Args:
        file: JSON with `images`, `annotations` and `categories`.
        where: the recipe's key, for errors.
        masks: keep segmentations.
        max_bad_fraction: of the objects, how many may lack a mask.
        files: those of the folder of images, which names are matched with; None: names are kept as they are.

    Raises:
        UserError, UserErrors: the file cannot be read, or records contradict each other: all kinds at once.
    """
    records = read_records(file, where, masks=masks, max_bad_fraction=max_bad_fraction, files=files)
    cleaned = _compact(records, masks=masks)
    if files is None:
        return cleaned
    names, notes = files.match(list(cleaned.names), where, max_bad_fraction * len(records.images))
    return replace(cleaned, names=Names.of(names), notes=(*cleaned.notes, *notes)) if notes else cleaned


def _compact(records: Records, *, masks: bool) -> Annotations:
    """Sort by image, clip, drop, and put into arrays."""
    images = sorted(records.images, key=lambda image: _order(image["id"]))
    categories = sorted(records.categories, key=lambda category: category["id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    label = {category["id"]: number for number, category in enumerate(categories)}
    annotations = sorted(records.annotations, key=lambda each: (place[each["image_id"]], _order(each["id"])))
    owners = np.array([place[each["image_id"]] for each in annotations], np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    given_boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
    boxes, clipped, kept = _clip_boxes(given_boxes, sizes[owners])
    box_counts = count_boxes(given_boxes, sizes[owners], clipped, kept)
    annotations = [each for each, keep in zip(annotations, kept, strict=True) if keep]
    boxes, owners = boxes[kept], owners[kept]
    given = [each.get("area") for each in annotations]
    spans = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    texts, unmasked, lines = _masks_of(annotations, boxes) if masks else ([], np.zeros(len(annotations), np.bool_), 0)
    crowd = np.array([bool(each.get("iscrowd")) for each in annotations], np.bool_)
    counts = (("boxes clipped to their image", int((clipped & kept).sum())),
              ("boxes without area in their image dropped", int((~kept).sum())),
              ("objects without a mask (segmentation) left out of training and ignored in evaluation, as crowds are",
               int(unmasked.sum())),
              ("polygons of less than three points left out, of objects with other polygons", lines))  # fmt: skip
    return Annotations(
        categories=tuple((category["id"], category["name"]) for category in categories),
        names=Names.of(str(PurePosixPath(image["file_name"])) for image in images),
        sizes=sizes,
        notes=tuple(f"{count} {what}" for what, count in counts if count),
        box_counts=box_counts,
        digest=records.sha256,
        ends=np.cumsum(np.bincount(owners, minlength=len(images)), dtype=np.int64),
        boxes=boxes.astype(np.float32),
        labels=np.array([label[each["category_id"]] for each in annotations], np.int64),
        crowd=crowd | unmasked,
        areas=np.array([s if a is None else a for a, s in zip(given, spans, strict=True)], np.float32),
        segmentations=np.frombuffer(b"".join(texts), np.uint8) if masks else None,
        segmentation_ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
        without_mask=int(unmasked.sum()),
    )


def _order(identifier: int | str) -> tuple[bool, int | str]:
    """Return a key by which ids are sorted: numbers before texts."""
    return isinstance(identifier, str), identifier


def _masks_of(annotations: list[Record], boxes: NDArray[np.float64]) -> tuple[list[bytes], NDArray[np.bool_], int]:
    """Return the masks as JSON, the box for an object that has none; which have none; polygons that were left out."""
    texts, unmasked, left_out = [], np.zeros(len(annotations), np.bool_), 0
    for number, (each, (x1, y1, x2, y2)) in enumerate(zip(annotations, boxes.tolist(), strict=True)):
        segmentation = each.get("segmentation")
        if not has_mask(each):
            unmasked[number] = True
            segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        elif isinstance(segmentation, list):
            polygons = polygons_of(segmentation)
            left_out += len(segmentation) - len(polygons)
            segmentation = polygons
        texts.append(json.dumps(segmentation, separators=(",", ":")).encode())
    return texts, unmasked, left_out


def _clip_boxes(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Corners (n, 4) of x, y, width, height, clipped; which were clipped; which still have an area."""
    with np.errstate(over="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    limits = np.tile(sizes[:, ::-1], 2)
    inside = np.clip(corners, 0, limits)
    clipped = (np.abs(inside - corners) > CLIPPED_PIXELS).any(axis=1)
    with_area = (boxes[:, 2:] > 0).all(axis=1) & (
        inside[:, 2:].astype(np.float32) > inside[:, :2].astype(np.float32)
    ).all(axis=1)
    return inside, clipped, with_area
