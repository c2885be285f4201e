"""Annotations in COCO's instances format: checked, cleaned, and kept compactly."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from numpy.typing import NDArray

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.boxes import count_boxes
from scalablevit.data.instances import Instances, to_run_lengths
from scalablevit.data.names import shown
from scalablevit.data.sources.listing import Listing, Names

CLIPPED_PIXELS = 0.5
"""Boxes that reach further than this out of their image are counted; rounding is not worth a word."""
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}
"""COCO's bounds of an object's area in pixels of the original image, both included, by the metric's name for them."""
_LARGEST_SIDE = 65_535  # of a JPEG; masks of larger ones would cost memory before the image is looked at
_FAR = 10**6  # pixels; run lengths of a polygon are made from all points of its outline
_SHOWN = 5
_FIX = "correct the file"

_ARRAYS = ("sizes", "ends", "boxes", "labels", "crowd", "areas", "segmentations", "segmentation_ends")
"""Those of `Annotations`' fields that are arrays."""

Record = dict[str, Any]


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

    def facts(self) -> dict[str, Any]:
        """What `in_listing` reads beside `arrays`."""
        return {"categories": self.categories, "notes": self.notes, "box_counts": self.box_counts,
                "annotations_sha256": self.digest}  # fmt: skip

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a listing, where other arrays may have the same names."""
        arrays = {f"objects_{name}": getattr(self, name) for name in _ARRAYS}
        return {**self.names.arrays(), **{name: array for name, array in arrays.items() if array is not None}}

    @classmethod
    def in_listing(cls, listing: Listing) -> Self:
        """The annotations of a listing, as arrays that may be mapped."""
        arrays: dict[str, Any] = {name: listing.arrays.get(f"objects_{name}") for name in _ARRAYS}
        return cls(
            categories=tuple((number, name) for number, name in listing.facts["categories"]),
            names=Names.in_listing(listing),
            notes=tuple(listing.facts["notes"]),
            box_counts=listing.facts["box_counts"],
            digest=listing.facts["annotations_sha256"],
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


def read_annotations(file: Path, where: str, *, masks: bool) -> Annotations:
    """Read a file of instances in COCO's format.

    Boxes are clipped to their image; those without area are dropped. Both are counted in `notes`.

    Args:
        file: JSON with `images`, `annotations` and `categories`.
        where: the recipe's key, for errors.
        masks: keep segmentations, and refuse annotations without one.

    Raises:
        UserError, UserErrors: the file cannot be read, or records contradict each other: all kinds at once.
    """
    content = _read(file, where)
    tables = _tables(content, file, where)
    problems: dict[str, list[str]] = {}
    images = _checked(tables["images"], "images", _image_problem, problems)
    categories = _checked(tables["categories"], "categories", _category_problem, problems)
    annotations = _checked(tables["annotations"], "annotations", _annotation_problem(masks), problems)
    _raise(problems, file, where)  # references mean something only between sound records
    for table, records in (("images", images), ("annotations", annotations), ("categories", categories)):
        _twice((record["id"] for record in records), f"ids of {table} occur twice", problems)
    _twice((str(PurePosixPath(each["file_name"])) for each in images), "images share a file_name", problems)
    _twice((each["name"] for each in categories), "categories share a name", problems)
    if not images:
        problems["there are no images"] = [""]
    if not categories:
        problems["there are no categories"] = [""]
    known_images, known_categories = {i["id"]: i for i in images}, {c["id"] for c in categories}
    for each in annotations:
        if each["image_id"] not in known_images:
            problems.setdefault("annotations of images that are not there (image_id)", []).append(str(each["image_id"]))
        elif masks and (problem := _size_problem(each["segmentation"], known_images[each["image_id"]])):
            problems.setdefault(problem, []).append(f"annotation {each['id']}")
        if each["category_id"] not in known_categories:
            problems.setdefault("unknown category_id", []).append(str(each["category_id"]))
    _raise(problems, file, where)
    digest = hashlib.sha256(content).hexdigest()
    return _compact(images, categories, annotations, digest, masks=masks)


def _read(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", where=where, fix="correct the path") from None


def _tables(content: bytes, file: Path, where: str) -> dict[str, list[Any]]:
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is no JSON: {error}", where=where, fix="name a file in COCO's instances format"
        ) from None
    names = ("images", "annotations", "categories")
    missing = [name for name in names if not isinstance(tree, dict) or not isinstance(tree.get(name), list)]
    if missing:
        raise UserError(f"{file} has no list {' and no list '.join(missing)}", where=where,
                        fix="name a file in COCO's instances format")  # fmt: skip
    return {name: tree[name] for name in names}


def _checked(
    records: list[Any], table: str, problem_of: Callable[[Record], str | None], problems: dict[str, list[str]]
) -> list[Record]:
    for number, record in enumerate(records):
        problem = "is no mapping" if not isinstance(record, dict) else problem_of(record)
        if problem:
            problems.setdefault(f"of {table} {problem}", []).append(f"number {number}{_id_of(record)}")
    return records


def _id_of(record: Any) -> str:
    return f" (id {record['id']})" if isinstance(record, dict) and _is_id(record.get("id")) else ""


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _image_problem(image: Record) -> str | None:
    if not _is_id(image.get("id")):
        return "id is no whole number"
    if any(not (_is_id(image.get(side)) and 0 < image[side] <= _LARGEST_SIDE) for side in ("width", "height")):
        return f"width or height is no whole number in 1..{_LARGEST_SIDE}"
    name = image.get("file_name")
    if not isinstance(name, str) or not name.strip():
        return "file_name is missing"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name or "\\" in name:
        return "file_name leaves the folder of images"
    try:
        os.fsencode(name)
    except UnicodeError:
        return "file_name is no possible name of a file"
    return None


def _category_problem(category: Record) -> str | None:
    if not _is_id(category.get("id")):
        return "id is no whole number"
    if not isinstance(category.get("name"), str) or not category["name"].strip():
        return "name is missing"
    return None if category["name"].isprintable() else "name holds characters that cannot be printed"


def _annotation_problem(masks: bool) -> Callable[[Record], str | None]:
    def problem_of(each: Record) -> str | None:
        for key in ("id", "image_id", "category_id"):
            if not _is_id(each.get(key)):
                return f"{key} is no whole number"
        box = each.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return "bbox is not four finite numbers"
        if "area" in each and not (_is_number(each["area"]) and 0 <= each["area"] <= _LARGEST_SIDE**2):
            return f"area is no number in 0..{_LARGEST_SIDE**2}"
        if each.get("iscrowd", 0) not in (0, 1):
            return "iscrowd is neither 0 nor 1"
        return _segmentation_problem(each.get("segmentation")) if masks else None

    return problem_of


def _segmentation_problem(segmentation: Any) -> str | None:
    if isinstance(segmentation, list):
        if not segmentation:
            return "segmentation is missing or empty (data.instance_masks asks for it)"
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                return "segmentation has a polygon that is no list of finite numbers"
            if len(polygon) < 6 or len(polygon) % 2:
                return "segmentation has a polygon of less than three points, or of half a point"
            if max(map(abs, polygon)) > _FAR:
                return f"segmentation has a polygon with corners more than {_FAR} pixels away"
        return None
    if not isinstance(segmentation, dict):
        return "segmentation is missing or empty (data.instance_masks asks for it)"
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_id, size)):
        return "segmentation's size is not two whole numbers"
    if isinstance(counts, list):
        sound = all(_is_id(count) and count >= 0 for count in counts) and sum(counts) == size[0] * size[1]
        return None if sound else "segmentation's counts do not add up to its size"
    if not isinstance(counts, str):
        return "segmentation's counts are neither list nor text"
    try:
        (plain,) = mask_api_new_cpp.toUncompressedRLE([{"size": size, "counts": counts.encode()}])
    except (RuntimeError, ValueError):
        return "segmentation's counts cannot be read"
    return None if sum(plain["counts"]) == size[0] * size[1] else "segmentation's counts do not add up to its size"


def _size_problem(segmentation: Any, image: Record) -> str | None:
    if isinstance(segmentation, dict) and segmentation["size"] != [image["height"], image["width"]]:
        return "segmentations are for another size than their image's"
    return None


def _twice(values: Iterable[Any], what: str, problems: dict[str, list[str]]) -> None:
    if found := [str(value) for value, count in Counter(values).items() if count > 1]:
        problems[what] = found


def _raise(problems: dict[str, list[str]], file: Path, where: str) -> None:
    errors = []
    for what, found in problems.items():
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        named = f": {', '.join(map(shown, found[:_SHOWN]))}{more}" if found[0] else ""
        errors.append(UserError(f"{file}: {what}{named}", where=where, fix=_FIX))
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]


def _compact(
    images: list[Record], categories: list[Record], annotations: list[Record], digest: str, *, masks: bool
) -> Annotations:
    """Sort by image, clip, drop, and put into arrays."""
    images = sorted(images, key=lambda image: image["id"])
    categories = sorted(categories, key=lambda category: category["id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    label = {category["id"]: number for number, category in enumerate(categories)}
    annotations = sorted(annotations, key=lambda each: (place[each["image_id"]], each["id"]))
    owners = np.array([place[each["image_id"]] for each in annotations], np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    given_boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
    boxes, clipped, kept = _cleaned(given_boxes, sizes[owners])
    box_counts = count_boxes(given_boxes, sizes[owners], clipped, kept)
    annotations = [each for each, keep in zip(annotations, kept, strict=True) if keep]
    boxes, owners = boxes[kept], owners[kept]
    given = [each.get("area") for each in annotations]
    spans = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    texts = [json.dumps(each["segmentation"], separators=(",", ":")).encode() for each in annotations] if masks else []
    counts = (("boxes clipped to their image", int((clipped & kept).sum())),
              ("boxes without area in their image dropped", int((~kept).sum())))  # fmt: skip
    return Annotations(
        categories=tuple((category["id"], category["name"]) for category in categories),
        names=Names.of(str(PurePosixPath(image["file_name"])) for image in images),
        sizes=sizes,
        notes=tuple(f"{count} {what}" for what, count in counts if count),
        box_counts=box_counts,
        digest=digest,
        ends=np.cumsum(np.bincount(owners, minlength=len(images)), dtype=np.int64),
        boxes=boxes.astype(np.float32),
        labels=np.array([label[each["category_id"]] for each in annotations], np.int64),
        crowd=np.array([bool(each.get("iscrowd", 0)) for each in annotations], np.bool_),
        areas=np.array([s if a is None else a for a, s in zip(given, spans, strict=True)], np.float32),
        segmentations=np.frombuffer(b"".join(texts), np.uint8) if masks else None,
        segmentation_ends=np.cumsum([len(text) for text in texts], dtype=np.int64),
    )


def _cleaned(
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
