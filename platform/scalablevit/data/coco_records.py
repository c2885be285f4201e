"""Records of a file in COCO's instances format: read and checked, or refused with the values received."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from scalablevit.config.errors import UserError, raise_all
from scalablevit.data.instances import damage_of
from scalablevit.data.sources.annotated_names import ImageFiles, leads_out
from scalablevit.data.sources.files import format_first

TOLERATED_WITHOUT_MASK = 10
"""Objects of a file that may lack a mask, whatever `data.max_bad_fraction` is, as long as others have one."""
_LARGEST_SIDE = 65_535  # pixels, a JPEG's limit; masks of larger images would cost memory before the image is read
_FARTHEST_CORNER = 10**6  # pixels; the time and memory of drawing a polygon grow with its outline
_NAMED = 5  # records in an error
_NAMED_CHARACTERS = 60  # of a value in an error
_MAX_DIGITS = 18  # of a whole number written as text: what an int64 holds
_SMALLEST_POLYGON = 6  # numbers: three corners
_LEADS_OUT = "file_name leads out of the folder of images"
_FIX = "correct the file"
_FIXES = {f"of images {_LEADS_OUT}": "write file names relative to the folder of images (data.train.images, "
          "data.val.images)"}  # fmt: skip

Record = dict[str, Any]
Problem = tuple[str, Any]
"""What is wrong with a record, and the value received."""
Problems = dict[str, list[str]]
"""Descriptions of records by what is wrong with them; after the first few they are empty, and only counted."""

_NOTHING = object()
"""The value of a key that is absent."""


@dataclass(frozen=True, slots=True)
class Records:
    """The tables of a file, after all checks."""

    images: list[Record]
    categories: list[Record]
    annotations: list[Record]
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class _Located:
    """A file name that is refused, and the files of its base name in the folder of images."""

    name: str
    files: list[str]


def read_records(file: Path, where: str, *, masks: bool, max_bad_fraction: float, files: ImageFiles | None) -> Records:
    """Read and check the records of a file.

    Whole numbers that are written as "17" or 17.0 become ints; other ids stay text. Arguments: see
    `coco.read_annotations`.

    Raises:
        UserError, UserErrors: the file cannot be read, or records contradict each other; one error for each kind.
    """
    content = _read_bytes(file, where)
    tables = _parse_tables(content, file, where)
    problems: Problems = {}
    images = _check_records(tables["images"], "images", _image_problem(files), problems)
    categories = _check_records(tables["categories"], "categories", _category_problem, problems)
    annotations = _check_records(tables["annotations"], "annotations", _annotation_problem(masks), problems)
    raise_all(_errors(problems, file, where))  # references can be checked only between valid records
    _check_references(images, categories, annotations, problems, masks=masks)
    missing = [annotation for annotation in annotations if not has_mask(annotation)] if masks else []
    errors = _errors(problems, file, where)
    if missing and len(missing) > _most_without_mask(len(annotations), max_bad_fraction):
        errors.append(_missing_masks_error(missing, len(annotations), file, where))
    raise_all(errors)
    return Records(images, categories, annotations, hashlib.sha256(content).hexdigest())


def has_mask(annotation: Record) -> bool:
    """Return whether an annotation has run lengths, or a polygon of three points or more."""
    segmentation = annotation.get("segmentation")
    return bool(polygons_of(segmentation) if isinstance(segmentation, list) else segmentation)


def polygons_of(polygons: list[Any]) -> list[Any]:
    """Return the polygons of three points or more."""
    return [polygon for polygon in polygons if len(polygon) >= _SMALLEST_POLYGON]


def _check_references(
    images: list[Record], categories: list[Record], annotations: list[Record], problems: Problems, *, masks: bool
) -> None:
    """Add what is wrong between records that are each valid by itself."""
    for table, records in (("images", images), ("annotations", annotations), ("categories", categories)):
        _report_duplicates((record["id"] for record in records), f"ids of {table} occur twice", problems)
    file_names = (str(PurePosixPath(image["file_name"])) for image in images)
    _report_duplicates(file_names, "images share a file_name", problems)
    _report_duplicates((category["name"] for category in categories), "categories share a name", problems)
    if not images:
        problems["there are no images"] = [""]
    if not categories:
        problems["there are no categories"] = [""]
    known_images, known_categories = {i["id"]: i for i in images}, {c["id"] for c in categories}
    for annotation in annotations:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in known_images:
            problems.setdefault("annotations of images that are not there (image_id)", []).append(str(image_id))
        elif masks and (problem := _size_problem(annotation.get("segmentation"), known_images[image_id])):
            problems.setdefault(problem, []).append(f"annotation {annotation['id']}")
        if category_id not in known_categories:
            problems.setdefault("unknown category_id", []).append(str(category_id))


def _read_bytes(file: Path, where: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}", where=where, fix="correct the path") from None


def _parse_tables(content: bytes, file: Path, where: str) -> dict[str, list[Any]]:
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


def _check_records(
    records: list[Any], table: str, problem_of: Callable[[Record], Problem | None], problems: Problems
) -> list[Record]:
    """Return the records; add what is wrong with each to `problems`."""
    for index, record in enumerate(records):
        problem = problem_of(record) if isinstance(record, dict) else ("is no mapping", record)
        if problem:
            texts = problems.setdefault(f"of {table} {problem[0]}", [])
            is_named = len(texts) < _NAMED
            texts.append(f"number {index}{_id_of(record)} has {_shorten(problem[1])}" if is_named else "")
    return records


def _id_of(record: Any) -> str:
    return f" (id {record['id']})" if isinstance(record, dict) and _is_whole_number(record.get("id")) else ""


def _shorten(value: Any) -> str:
    """Return a value as it is written in the file, shortened."""
    if isinstance(value, _Located):
        return f"{_shorten(value.name)} (in the folder of images there is {format_first(value.files, 2)})"
    text = "nothing" if value is _NOTHING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _NAMED_CHARACTERS else f"{text[:_NAMED_CHARACTERS]}..."


def _is_whole_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _convert_whole(record: Record, key: str) -> bool:
    """Return whether a key has a whole number; one that is written as text or with a fraction of 0 becomes an int."""
    value: Any = record.get(key)
    if _is_whole_number(value):
        return True
    digits = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS
    if not digits and not (isinstance(value, float) and value.is_integer() and abs(value) < 2**53):
        return False
    record[key] = int(value)
    return True


def _read_id(record: Record, key: str) -> bool:
    """Return whether a key has an id: a whole number or a text that is not blank."""
    return _convert_whole(record, key) or (isinstance(record.get(key), str) and bool(record[key].strip()))


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _image_problem(files: ImageFiles | None) -> Callable[[Record], Problem | None]:
    def problem_of(image: Record) -> Problem | None:
        if not _read_id(image, "id"):
            return "id is neither a whole number nor a text", image.get("id", _NOTHING)
        if any(not (_convert_whole(image, side) and 0 < image[side] <= _LARGEST_SIDE) for side in ("width", "height")):
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
            alike = files.with_base_name(name) if files else []
            return _LEADS_OUT, _Located(name, alike) if alike else name
        return None

    return problem_of


def _category_problem(category: Record) -> Problem | None:
    if not _convert_whole(category, "id"):
        return "id is no whole number", category.get("id", _NOTHING)
    name = category.get("name", _NOTHING)
    if not isinstance(name, str) or not name.strip():
        return "name is missing", name
    return None if name.isprintable() else ("name holds characters that cannot be printed", name)


def _annotation_problem(masks: bool) -> Callable[[Record], Problem | None]:
    def problem_of(annotation: Record) -> Problem | None:
        for key in ("id", "image_id"):
            if not _read_id(annotation, key):
                return f"{key} is neither a whole number nor a text", annotation.get(key, _NOTHING)
        if not _convert_whole(annotation, "category_id"):
            return "category_id is no whole number", annotation.get("category_id", _NOTHING)
        box = annotation.get("bbox", _NOTHING)
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            return "bbox is not four finite numbers", box
        area = annotation.get("area")
        if area is not None and not (_is_number(area) and 0 <= area <= _LARGEST_SIDE**2):
            return f"area is no number in 0..{_LARGEST_SIDE**2}", area
        if annotation.get("iscrowd") not in (None, 0, 1):
            return "iscrowd is neither 0 nor 1", annotation["iscrowd"]
        problem = _segmentation_problem(annotation.get("segmentation")) if masks else None
        return (problem, annotation["segmentation"]) if problem else None

    return problem_of


def _segmentation_problem(segmentation: Any) -> str | None:
    """Return what is wrong with a mask; `read_records` counts objects without one, and polygons of too few points."""
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
                return "segmentation has a polygon that is no list of finite numbers"
            if len(polygon) % 2:
                return "segmentation has a polygon of half a point"
            if polygon and max(map(abs, polygon)) > _FARTHEST_CORNER:
                return f"segmentation has a polygon with corners more than {_FARTHEST_CORNER} pixels away"
        return None
    if segmentation is None or segmentation == {}:
        return None
    if not isinstance(segmentation, dict):
        return "segmentation is neither polygons nor run lengths"
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(map(_is_whole_number, size)):
        return "segmentation's size is not two whole numbers"
    if isinstance(counts, list):
        valid = all(_is_whole_number(count) and count >= 0 for count in counts) and sum(counts) == size[0] * size[1]
        return None if valid else "segmentation's counts do not add up to its size"
    if not isinstance(counts, str):
        return "segmentation's counts are neither list nor text"
    damage = damage_of(counts, (size[0], size[1]))
    return f"segmentation's counts {damage}" if damage else None


def _most_without_mask(objects: int, max_bad_fraction: float) -> float:
    """Return how many of a file's objects may lack a mask."""
    return min(max(max_bad_fraction * objects, TOLERATED_WITHOUT_MASK), objects - 1)


def _missing_masks_error(missing: list[Record], count: int, file: Path, where: str) -> UserError:
    named = format_first([str(annotation["id"]) for annotation in missing], _NAMED)
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


def _report_duplicates(values: Iterable[Any], what: str, problems: dict[str, list[str]]) -> None:
    if duplicates := [str(value) for value, count in Counter(values).items() if count > 1]:
        problems[what] = duplicates


def _errors(problems: Problems, file: Path, where: str) -> list[UserError]:
    errors = []
    for what, records in problems.items():
        named = f": {format_first(records, _NAMED)}" if records[0] else ""
        errors.append(UserError(f"{file}: {what}{named}", where=where, fix=_FIXES.get(what, _FIX)))
    return errors
