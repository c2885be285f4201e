"""Annotations in COCO's instances format, cleaned and stored as arrays."""

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
"""Boxes that reach further than so many pixels out of their image are counted; less is rounding."""
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}
"""COCO's bounds of an object's area, in square pixels of the original image, both included, by COCO's names."""
_ARRAYS = ("sizes", "ends", "boxes", "labels", "crowd", "areas", "segmentations", "segmentation_ends")
"""Those of `Annotations`' fields that are arrays."""


@dataclass(frozen=True)
class Annotations:
    """The instances of a split, image by image in the order of image ids.

    Stored as arrays and one block of bytes: as Python objects those of COCO's training split would cost every process
    gigabytes. n is the number of all instances.
    """

    categories: tuple[tuple[int, str], ...]
    """Id and name, by ascending id; a class index is a position in here."""
    names: Names
    """Image files, relative to the folder of images."""
    sizes: NDArray[np.int64]
    """(images, 2) height and width, in pixels."""
    notes: tuple[str, ...]
    """What cleaning changed, one line each."""
    box_counts: dict[str, float]
    """The result of `count_boxes` over all boxes of the file."""
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    ends: NDArray[np.int64]
    """(images,) index after each image's last instance."""
    boxes: NDArray[np.float32]
    """(n, 4) x1, y1, x2, y2 in pixels, clipped to the image."""
    labels: NDArray[np.int64]
    """(n,) class indices."""
    crowd: NDArray[np.bool_]
    """(n,) COCO's `iscrowd`."""
    areas: NDArray[np.float32]
    """(n,) COCO's `area` in square pixels, or the box's where the file has none or 0."""
    segmentations: NDArray[np.uint8] | None
    """JSON of all instances' segmentations as bytes, one after another; None: masks are not read."""
    segmentation_ends: NDArray[np.int64]
    """(n,) index after each segmentation's last byte; (0,) where masks are not read."""
    without_mask: int = 0
    """Objects without a mask although masks are read; see `read_annotations`."""

    def facts(self) -> Facts:
        """Return the plain values that `from_listing` reads besides `arrays`."""
        return {
            "categories": self.categories,
            "notes": self.notes,
            "box_counts": self.box_counts,
            "annotations_sha256": self.digest,
            "without_mask": self.without_mask,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays for a listing, under names that no other array of it has."""
        arrays = {f"objects_{name}": getattr(self, name) for name in _ARRAYS}
        return {**self.names.arrays(), **{name: array for name, array in arrays.items() if array is not None}}

    @classmethod
    def from_listing(cls, listing: Listing) -> Self:
        """Return the annotations of a listing, without copying its arrays."""
        arrays: dict[str, Any] = {name: listing.arrays.get(f"objects_{name}") for name in _ARRAYS}
        return cls(
            categories=tuple((category_id, name) for category_id, name in listing.facts["categories"]),
            names=Names.from_listing(listing),
            notes=tuple(listing.facts["notes"]),
            box_counts=listing.facts["box_counts"],
            digest=listing.facts["annotations_sha256"],
            without_mask=listing.facts["without_mask"],
            **arrays,
        )

    def absent_sizes(self) -> tuple[str, ...]:
        """Return those of `SIZES` that no object has, crowds not counted: COCO's metric has no value for them."""
        areas = self.areas[~self.crowd]
        return tuple(size for size, (low, high) in SIZES.items() if not ((areas >= low) & (areas <= high)).any())

    def of_image(self, i: int) -> Instances:
        """Return the instances of image i."""
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

    Boxes are clipped to their image; those without area are dropped. Both are counted in `notes`. A whole number may be
    written as "17" or 17.0, ids of images and annotations may be any text, and a null is read as if the key were
    absent.

    With `masks`, a few objects may lack one (`segmentation` missing, empty or without a polygon of three points): up to
    `max_bad_fraction` of the objects or `TOLERATED_WITHOUT_MASK`, whichever is more, but never all. They are counted in
    `notes` and become crowds whose mask is their box: training learns nothing from a crowd and evaluation counts
    predictions in it neither as right nor as wrong. For training they are background, as all crowds are.

    Args:
        file: JSON with `images`, `annotations` and `categories`.
        where: the recipe's key, for errors.
        masks: read segmentations.
        max_bad_fraction: fraction of the objects, 0 to 1, that may lack a mask, and of the images whose name may be
            ambiguous.
        files: files in the folder of images, which names are matched with; None: names are kept as they are.

    Raises:
        UserError, UserErrors: the file cannot be read, or records contradict each other; one error for each kind.
    """
    records = read_records(file, where, masks=masks, max_bad_fraction=max_bad_fraction, files=files)
    cleaned = _compact(records, masks=masks)
    if files is None:
        return cleaned
    names, notes = files.match(list(cleaned.names), where, max_bad_fraction * len(records.images))
    return replace(cleaned, names=Names.of(names), notes=(*cleaned.notes, *notes)) if notes else cleaned


def _compact(records: Records, *, masks: bool) -> Annotations:
    """Sort annotations by image, clip and drop boxes, and store all in arrays."""
    images = sorted(records.images, key=lambda image: _sort_key(image["id"]))
    categories = sorted(records.categories, key=lambda category: category["id"])
    image_index = {image["id"]: index for index, image in enumerate(images)}
    label = {category["id"]: index for index, category in enumerate(categories)}
    annotations = sorted(records.annotations, key=lambda item: (image_index[item["image_id"]], _sort_key(item["id"])))
    owners = np.array([image_index[item["image_id"]] for item in annotations], np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    file_boxes = np.array([item["bbox"] for item in annotations], np.float64).reshape(-1, 4)
    boxes, clipped, kept = _clip_boxes(file_boxes, sizes[owners])
    areas = np.array([item.get("area") or 0 for item in annotations], np.float64)
    box_counts = count_boxes(file_boxes, sizes[owners], areas, clipped, kept)
    annotations = [item for item, keep in zip(annotations, kept, strict=True) if keep]
    boxes, owners, areas = boxes[kept], owners[kept], areas[kept]
    box_areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    texts, unmasked, lines = _masks_of(annotations, boxes) if masks else ([], np.zeros(len(annotations), np.bool_), 0)
    crowd = np.array([bool(item.get("iscrowd")) for item in annotations], np.bool_)
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
        labels=np.array([label[item["category_id"]] for item in annotations], np.int64),
        crowd=crowd | unmasked,
        areas=np.where(areas > 0, areas, box_areas).astype(np.float32),
        segmentations=np.frombuffer(b"".join(texts), np.uint8) if masks else None,
        segmentation_ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
        without_mask=int(unmasked.sum()),
    )


def _sort_key(identifier: int | str) -> tuple[bool, int | str]:
    """Return the key by which an id is sorted: numbers before texts."""
    return isinstance(identifier, str), identifier


def _masks_of(annotations: list[Record], boxes: NDArray[np.float64]) -> tuple[list[bytes], NDArray[np.bool_], int]:
    """Return the masks as JSON, the box for an object without one; bool (n,): which have none; dropped polygons."""
    texts, unmasked, dropped = [], np.zeros(len(annotations), np.bool_), 0
    for index, (annotation, (x1, y1, x2, y2)) in enumerate(zip(annotations, boxes.tolist(), strict=True)):
        segmentation = annotation.get("segmentation")
        if not has_mask(annotation):
            unmasked[index] = True
            segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        elif isinstance(segmentation, list):
            polygons = polygons_of(segmentation)
            dropped += len(segmentation) - len(polygons)
            segmentation = polygons
        texts.append(json.dumps(segmentation, separators=(",", ":")).encode())
    return texts, unmasked, dropped


def _clip_boxes(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Clip boxes (n, 4) of x, y, width, height to images of height and width `sizes` (n, 2), in pixels.

    Returns:
        (n, 4) x1, y1, x2, y2; (n,) which boxes were clipped; (n,) which still have an area.
    """
    with np.errstate(over="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    limits = np.tile(sizes[:, ::-1], 2)
    inside = np.clip(corners, 0, limits)
    clipped = (np.abs(inside - corners) > CLIPPED_PIXELS).any(axis=1)
    fractions = (inside.astype(np.float32) / limits).astype(np.float32)  # as transforms keep and compare them
    with_area = (boxes[:, 2:] > 0).all(axis=1) & (fractions[:, 2:] > fractions[:, :2]).all(axis=1)
    return inside, clipped, with_area
