"""Annotations in COCO's instances format: checked, cleaned, and kept compactly."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from faster_coco_eval import mask_api_new_cpp
from numpy.typing import NDArray

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.boxes import count_boxes
from scalablevit.data.instances import Instances, to_run_lengths
from scalablevit.data.names import shown
from scalablevit.data.sources.annotated_names import ImageFiles, leads_out
from scalablevit.data.sources.files import first
from scalablevit.data.sources.listing import Listing, Names

CLIPPED_PIXELS = 0.5
"""Boxes that reach further than this out of their image are counted; rounding is not worth a word."""
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}
"""COCO's bounds of an object's area in pixels of the original image, both included, by the metric's name for them."""
TOLERATED_WITHOUT_MASK = 10
"""So many objects of a file may lack a mask whatever `data.max_bad_fraction` says, as long as others have one."""
_LARGEST_SIDE = 65_535  # of a JPEG; masks of larger ones would cost memory before the image is looked at
_FAR = 10**6  # pixels; run lengths of a polygon are made from all points of its outline
_SHOWN = 5
_SHOWN_CHARACTERS = 60  # of a value in an error
_DIGITS = 18  # of a number given as text: what an int64 holds
_CORNERS = 6  # numbers of the smallest polygon
_LEADS_OUT = "file_name leads out of the folder of images"
_FIX = "correct the file"
_FIXES = {f"of images {_LEADS_OUT}": "write file names relative to the folder of images (data.train.images, "
          "data.val.images)"}  # fmt: skip

_ARRAYS = ("sizes", "ends", "boxes", "labels", "crowd", "areas", "segmentations", "segmentation_ends")
"""Those of `Annotations`' fields that are arrays."""

Record = dict[str, Any]
Problem = tuple[str, Any]
"""What is wrong with a record, and the value received."""
Problems = dict[str, list[str]]
"""By what is wrong: the records; after the first few, empty texts that only count."""

_NOTHING = object()
"""Stands for the value of a key that is not there."""


@dataclass(frozen=True, slots=True)
class _Located:
    """A file name that is refused, and the files of its base name in the folder of images."""

    name: str
    places: list[str]


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

    def facts(self) -> dict[str, Any]:
        """What `in_listing` reads beside `arrays`."""
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
    def in_listing(cls, listing: Listing) -> Self:
        """The annotations of a listing, as arrays that may be mapped."""
        arrays: dict[str, Any] = {name: listing.arrays.get(f"objects_{name}") for name in _ARRAYS}
        return cls(
            categories=tuple((number, name) for number, name in listing.facts["categories"]),
            names=Names.in_listing(listing),
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
    content = _read(file, where)
    tables = _tables(content, file, where)
    problems: Problems = {}
    images = _checked(tables["images"], "images", _image_problem(files), problems)
    categories = _checked(tables["categories"], "categories", _category_problem, problems)
    annotations = _checked(tables["annotations"], "annotations", _annotation_problem(masks), problems)
    _raise(problems, file, where)  # references mean something only between sound records
    _contradictions(images, categories, annotations, problems, masks=masks)
    missing = [each for each in annotations if not _has_mask(each)] if masks else []
    errors = _errors(problems, file, where)
    if missing and len(missing) > _tolerated(len(annotations), max_bad_fraction):
        errors.append(_without_masks(missing, len(annotations), file, where))
    _raise_all(errors)
    digest = hashlib.sha256(content).hexdigest()
    cleaned = _compact(images, categories, annotations, digest, masks=masks)
    if files is None:
        return cleaned
    names, notes = files.match(list(cleaned.names), where, max_bad_fraction * len(images))
    return replace(cleaned, names=Names.of(names), notes=(*cleaned.notes, *notes)) if notes else cleaned


def _contradictions(
    images: list[Record], categories: list[Record], annotations: list[Record], problems: Problems, *, masks: bool
) -> None:
    """Add what is wrong between records that are sound each by itself."""
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
        elif masks and (problem := _size_problem(each.get("segmentation"), known_images[each["image_id"]])):
            problems.setdefault(problem, []).append(f"annotation {each['id']}")
        if each["category_id"] not in known_categories:
            problems.setdefault("unknown category_id", []).append(str(each["category_id"]))


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
    records: list[Any], table: str, problem_of: Callable[[Record], Problem | None], problems: Problems
) -> list[Record]:
    """Return the records, with what is wrong with each added to `problems`."""
    for number, record in enumerate(records):
        problem = problem_of(record) if isinstance(record, dict) else ("is no mapping", record)
        if problem:
            found = problems.setdefault(f"of {table} {problem[0]}", [])
            shown_here = len(found) < _SHOWN
            found.append(f"number {number}{_id_of(record)} has {_text(problem[1])}" if shown_here else "")
    return records


def _id_of(record: Any) -> str:
    return f" (id {record['id']})" if isinstance(record, dict) and _is_id(record.get("id")) else ""


def _text(value: Any) -> str:
    """Return a value received as it is in the file, shortened."""
    if isinstance(value, _Located):
        return f"{_text(value.name)} (in the folder of images there is {first(value.places, 2)})"
    text = "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_whole(record: Record, key: str) -> bool:
    """Return whether a whole number is there; one given as text or with a fraction of zero becomes an int."""
    value: Any = record.get(key)
    if _is_id(value):
        return True
    text = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _DIGITS
    if not text and not (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
        return False
    record[key] = int(value)
    return True


def _read_id(record: Record, key: str) -> bool:
    """Return whether an id that means nothing by itself is there: a whole number or a text."""
    return _read_whole(record, key) or (isinstance(record.get(key), str) and bool(record[key].strip()))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _image_problem(files: ImageFiles | None) -> Callable[[Record], Problem | None]:
    def problem_of(image: Record) -> Problem | None:
        if not _read_id(image, "id"):
            return "id is neither a whole number nor a text", image.get("id", _NOTHING)
        if any(not (_read_whole(image, side) and 0 < image[side] <= _LARGEST_SIDE) for side in ("width", "height")):
            size = {side: image.get(side) for side in ("width", "height")}
            return f"width or height is no whole number in 1..{_LARGEST_SIDE}", size
        name = image.get("file_name")
        if not isinstance(name, str) or not name.strip():
            return "file_name is missing", image.get("file_name", _NOTHING)
        try:
            os.fsencode(name)
        except UnicodeError:
            return "file_name is no possible name of a file", name
        if leads_out(name):
            places = files.with_base_name(name) if files else []
            return _LEADS_OUT, _Located(name, places) if places else name
        return None

    return problem_of


def _category_problem(category: Record) -> Problem | None:
    if not _read_whole(category, "id"):
        return "id is no whole number", category.get("id", _NOTHING)
    name = category.get("name", _NOTHING)
    if not isinstance(name, str) or not name.strip():
        return "name is missing", name
    return None if name.isprintable() else ("name holds characters that cannot be printed", name)


def _annotation_problem(masks: bool) -> Callable[[Record], Problem | None]:
    def problem_of(each: Record) -> Problem | None:
        for key in ("id", "image_id"):
            if not _read_id(each, key):
                return f"{key} is neither a whole number nor a text", each.get(key, _NOTHING)
        if not _read_whole(each, "category_id"):
            return "category_id is no whole number", each.get("category_id", _NOTHING)
        box = each.get("bbox", _NOTHING)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return "bbox is not four finite numbers", box
        area = each.get("area")
        if area is not None and not (_is_number(area) and 0 <= area <= _LARGEST_SIDE**2):
            return f"area is no number in 0..{_LARGEST_SIDE**2}", area
        if each.get("iscrowd") not in (None, 0, 1):
            return "iscrowd is neither 0 nor 1", each["iscrowd"]
        problem = _segmentation_problem(each.get("segmentation")) if masks else None
        return (problem, each["segmentation"]) if problem else None

    return problem_of


def _segmentation_problem(segmentation: Any) -> str | None:
    """Return what is wrong with a mask; none at all, and polygons of too few points, are counted elsewhere."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                return "segmentation has a polygon that is no list of finite numbers"
            if len(polygon) % 2:
                return "segmentation has a polygon of half a point"
            if polygon and max(map(abs, polygon)) > _FAR:
                return f"segmentation has a polygon with corners more than {_FAR} pixels away"
        return None
    if segmentation is None or segmentation == {}:
        return None
    if not isinstance(segmentation, dict):
        return "segmentation is neither polygons nor run lengths"
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


def _has_mask(annotation: Record) -> bool:
    segmentation = annotation.get("segmentation")
    return bool(_polygons(segmentation) if isinstance(segmentation, list) else segmentation)


def _polygons(polygons: list[Any]) -> list[Any]:
    """Return the polygons of three points or more."""
    return [polygon for polygon in polygons if len(polygon) >= _CORNERS]


def _tolerated(objects: int, max_bad_fraction: float) -> float:
    """Return how many of a file's objects may lack a mask."""
    return min(max(max_bad_fraction * objects, TOLERATED_WITHOUT_MASK), objects - 1)


def _without_masks(missing: list[Record], count: int, file: Path, where: str) -> UserError:
    named = first([str(each["id"]) for each in missing], _SHOWN)
    return UserError(
        f"{file}: {len(missing)} of {count} annotations have no mask (segmentation missing, empty or without a polygon "
        f"of three points), and data.instance_masks asks for them: ids {named}",
        where=where,
        fix="give the objects polygons; or learn boxes alone: task.head=retinanet with data.instance_masks=false",
    )


def _size_problem(segmentation: Any, image: Record) -> str | None:
    if isinstance(segmentation, dict) and segmentation and segmentation["size"] != [image["height"], image["width"]]:
        return "segmentations are for another size than their image's"
    return None


def _twice(values: Iterable[Any], what: str, problems: dict[str, list[str]]) -> None:
    if found := [str(value) for value, count in Counter(values).items() if count > 1]:
        problems[what] = found


def _raise(problems: Problems, file: Path, where: str) -> None:
    _raise_all(_errors(problems, file, where))


def _errors(problems: Problems, file: Path, where: str) -> list[UserError]:
    errors = []
    for what, found in problems.items():
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        named = f": {', '.join(map(shown, found[:_SHOWN]))}{more}" if found[0] else ""
        errors.append(UserError(f"{file}: {what}{named}", where=where, fix=_FIXES.get(what, _FIX)))
    return errors


def _raise_all(errors: list[UserError]) -> None:
    if errors:
        raise UserErrors(errors) if len(errors) > 1 else errors[0]


def _compact(
    images: list[Record], categories: list[Record], annotations: list[Record], digest: str, *, masks: bool
) -> Annotations:
    """Sort by image, clip, drop, and put into arrays."""
    images = sorted(images, key=lambda image: _order(image["id"]))
    categories = sorted(categories, key=lambda category: category["id"])
    place = {image["id"]: number for number, image in enumerate(images)}
    label = {category["id"]: number for number, category in enumerate(categories)}
    annotations = sorted(annotations, key=lambda each: (place[each["image_id"]], _order(each["id"])))
    owners = np.array([place[each["image_id"]] for each in annotations], np.int64)
    sizes = np.array([(image["height"], image["width"]) for image in images], np.int64)
    given_boxes = np.array([each["bbox"] for each in annotations], np.float64).reshape(-1, 4)
    boxes, clipped, kept = _cleaned(given_boxes, sizes[owners])
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
        digest=digest,
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
        if not _has_mask(each):
            unmasked[number] = True
            segmentation = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        elif isinstance(segmentation, list):
            polygons = _polygons(segmentation)
            left_out += len(segmentation) - len(polygons)
            segmentation = polygons
        texts.append(json.dumps(segmentation, separators=(",", ":")).encode())
    return texts, unmasked, left_out


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
