"""What statistics say against a data set: what is refused, and what is only said."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scalablevit.config.data import CocoInstances, Data, MaskPairs, SplitName
from scalablevit.config.errors import UserError
from scalablevit.data.names import shown
from scalablevit.inspection.statistics import Boxes, DataStatistics, Pixels, SplitStatistics
from scalablevit.text import and_more

FEW_CLASSES = 3
"""Of so many classes or fewer none may be absent from a split: what is measured would be another task."""
FRACTION = 1.5
"""Boxes without a larger number are no pixels: they are fractions of the image, with some rounding."""
CORNERS_SHARE = 0.9
"""Of the boxes that have to fit as x1, y1, x2, y2 ..."""
REACHING_SHARE = 0.1
"""... and of those that have to reach out as x, y, width, height, for a warning."""
WORTH_A_WORD = 0.01
"""Of the objects: fewer are only in the table."""
CROWD_SHARE = 0.5
"""Of the instances: more crowds get a warning."""
RARE = 0.1
"""A class with less than this fraction of the most frequent class's images gets a warning."""
FOREIGN_IMAGES = frozenset({".heic", ".heif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".exr", ".dcm", ".svg"})
"""Suffixes of images that are not read; where such files are left out a warning says so."""
_NAMED = 5
_WORDS: dict[SplitName, str] = {"train": "training", "val": "validation"}


@dataclass
class Findings:
    """What was found."""

    errors: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_problems(statistics: DataStatistics, data: Data) -> Findings:
    """Hold statistics against what training needs.

    What was not looked at is passed over.

    Args:
        statistics: of both splits.
        data: the recipe's data section.
    """
    found = Findings()
    for split, counts in statistics.splits.items():
        before = len(found.errors)
        if isinstance(data, CocoInstances) and counts.boxes is not None:
            _check_boxes(found, split, counts.boxes, data)
        if len(found.errors) == before:  # else its classes are absent for that reason
            _check_classes(found, split, statistics, data)
        for left_out in counts.left_out:
            if left_out.suffix in FOREIGN_IMAGES:
                found.warnings.append(
                    f"{split}: {left_out.count} files in {left_out.suffix} are left out ({_first(left_out.names)}): "
                    "convert them to JPEG or PNG to use them"
                )
    _check_shared(found, statistics, data)
    if statistics.unit == "images":
        found.warnings += _imbalance(statistics)
    return found


def find_evaluation_problems(statistics: DataStatistics, data: Data) -> tuple[list[UserError], list[str]]:
    """Hold the validation split against what evaluation needs: what is refused, and warnings."""
    boxes, classes, counts = Findings(), Findings(), statistics.val
    if isinstance(data, CocoInstances) and counts.boxes is not None:
        _check_boxes(boxes, "val", counts.boxes, data)
    if not boxes.errors:
        _check_classes(classes, "val", statistics, data)
    return boxes.errors, [*boxes.warnings, *(error.what for error in classes.errors), *classes.warnings]


def _check_boxes(found: Findings, split: SplitName, boxes: Boxes, data: CocoInstances) -> None:
    where, words = f"data.{split}.annotations", _WORDS[split]
    if boxes.annotations and boxes.largest <= FRACTION:
        found.errors.append(
            UserError(
                f"the largest number in the {boxes.annotations} boxes of {words} is {boxes.largest:.4g}: they are "
                "fractions of the image, and COCO's boxes are x, y, width, height in pixels",
                where=where,
                fix="multiply x and width by the image's width, y and height by its height",
            )
        )
    elif not boxes.objects:
        found.errors.append(_no_object(split, boxes))
    elif boxes.below_pixel == boxes.objects:
        found.errors.append(
            UserError(
                f"all {boxes.objects} boxes of {words} are less than a pixel wide or high in the scaled image "
                f"(data.short_side {data.short_side}); the largest number in the file's boxes is {boxes.largest:.4g}",
                where=where,
                fix="COCO's boxes are x, y, width, height in pixels of the original image",
            )
        )
    else:
        found.warnings += [f"{split}: {warning}" for warning in _box_warnings(boxes, data)]


def _no_object(split: SplitName, boxes: Boxes) -> UserError:
    where, words = f"data.{split}.annotations", _WORDS[split]
    if not boxes.annotations:
        return UserError(
            f"there is no object in {words}: the file's list of annotations is empty",
            where=where,
            fix="name a file with annotations of these images",
        )
    if boxes.dropped < boxes.annotations:
        return UserError(
            f"{boxes.crowds} of {boxes.annotations} instances of {words} are crowds (iscrowd: 1)"
            + (f", and {boxes.dropped} have no area in their image" if boxes.dropped else "")
            + ": crowds are neither learned nor evaluated, so there is no object",
            where=where,
            fix="write iscrowd: 0 for single objects; tools that draw masks with a brush write 1 for run lengths",
        )
    return UserError(
        f"all {boxes.annotations} boxes of {words} have no area in their image",
        where=where,
        fix="COCO's boxes are x, y, width, height in pixels of the original image",
    )


def _box_warnings(boxes: Boxes, data: CocoInstances) -> Iterator[str]:
    total = max(1, boxes.annotations)
    corners = boxes.corners >= CORNERS_SHARE * total and boxes.reach_out >= REACHING_SHARE * total
    if corners:
        yield (
            f"the boxes seem to be x1, y1, x2, y2: read as COCO's x, y, width, height {boxes.reach_out} of "
            f"{boxes.annotations} reach out of their image, read as corners {boxes.corners} fit; write [x1, y1, "
            "x2 - x1, y2 - y1] into the file"
        )
    elif boxes.reach_out + boxes.dropped > WORTH_A_WORD * total:
        yield (
            f"{boxes.reach_out} of {boxes.annotations} boxes reach out of their image and were clipped, "
            f"{boxes.dropped} have no area in it and were dropped; compare the images' sizes with the file's"
        )
    if boxes.crowds > CROWD_SHARE * total:
        yield (
            f"{boxes.crowds} of {boxes.annotations} instances are crowds (iscrowd: 1), which are neither learned nor "
            "evaluated; write iscrowd: 0 for single objects"
        )
    if boxes.below_pixel > WORTH_A_WORD * boxes.objects:
        yield (
            f"{boxes.below_pixel} of {boxes.objects} objects are less than a pixel wide or high in the scaled image, "
            f"and training leaves them out; a larger data.short_side ({data.short_side}) keeps them"
        )
    if boxes.loose is not None and boxes.loose > WORTH_A_WORD * boxes.objects and not corners:
        yield (
            f"{boxes.loose} of {boxes.objects} boxes disagree with their polygons by more than 3 pixels, first in "
            f"{_first(boxes.loose_images)}; compute bbox from segmentation"
        )
    if boxes.flat:
        yield (
            f"{boxes.flat} of {boxes.objects} objects have polygons without area, first in "
            f"{_first(boxes.flat_images)}: correct or remove them"
        )


def _check_classes(found: Findings, split: SplitName, statistics: DataStatistics, data: Data) -> None:
    """Refuse classes without a sample where there are few, or where the recipe says so; else name them."""
    counts, absent = statistics.splits[split], statistics.absent(split)
    if not absent:
        return
    words, unit = _WORDS[split], statistics.unit
    known = len(statistics.classes) - len(absent)
    pixels = _pixels_by_value(counts.pixels, statistics.classes, data) if counts.pixels and data else ""
    named = ", ".join(_named(number, statistics.classes, data) for number in absent[:_NAMED])
    named += and_more(len(absent), _NAMED)
    have = f"class {named} has" if len(absent) == 1 else f"classes {named} have"
    what = f"{have} no {unit} in {words}"
    if known <= 1 and counts.pixels is not None:
        first = next(
            (name for name, count in zip(statistics.classes, counts.pixels.by_class, strict=True) if count), ""
        )
        begin = f"only class {shown(first)} has pixels" if known else "no class has pixels"
        what = f"{begin} in {words}, {what.replace(f' in {words}', '')}"
    fix = _class_fix(counts, data)
    if len(statistics.classes) <= FEW_CLASSES or (known <= 1 and counts.pixels is not None and split == "train"):
        found.errors.append(UserError(what + pixels, where=f"data.{split}", fix=fix))
    elif data.on_missing_class == "stop":
        found.errors.append(
            UserError(what + pixels, where=f"data.{split}", fix=f"{fix}, or set data.on_missing_class=warn")
        )
    else:
        effect = "they are not learned" if split == "train" else "no metric speaks of them"
        found.warnings.append(f"{what} ({len(absent)} of {len(statistics.classes)} classes): {effect}; {fix}")


def _class_fix(counts: SplitStatistics, data: Data) -> str:
    if not isinstance(data, MaskPairs):
        return "add some, or remove the class from the data"
    if data.reduce_zero_label and counts.pixels and counts.pixels.by_value.get(0):
        return (
            "set data.reduce_zero_label=false if the masks' value 0 is the first class, else write the values 1 to the "
            "number of classes into the masks"
        )
    if counts.pixels and counts.pixels.ignored:
        return (
            "write class ids (0, 1, ...) into the masks, or remove the class from data.classes; 255 is always ignored"
        )
    return "add masks that have it, or remove the class from data.classes"


def _named(number: int, classes: tuple[str, ...], data: Data) -> str:
    value = f" (mask value {number + int(data.reduce_zero_label)})" if isinstance(data, MaskPairs) else ""
    return f"{shown(classes[number])}{value}"


def _pixels_by_value(pixels: Pixels, classes: tuple[str, ...], data: Data) -> str:
    """The masks' values with their pixels, the most frequent first."""
    if not isinstance(data, MaskPairs):
        return ""
    first = int(data.reduce_zero_label)
    ordered = sorted(pixels.by_value.items(), key=lambda item: -item[1])
    parts = []
    for value, count in ordered[:_NAMED]:
        place = value - first
        meaning = shown(classes[place]) if 0 <= place < len(classes) else "ignored"
        parts.append(f"{value} ({meaning}) {count:,}")
    return f"; pixels by mask value: {', '.join(parts)}{and_more(len(ordered), _NAMED)}"


def _check_shared(found: Findings, statistics: DataStatistics, data: Data) -> None:
    shared = statistics.shared
    if shared is None or not shared.count:
        return
    named = ", ".join(f"{val} = {train}" for val, train in shared.names[:_NAMED])
    more = and_more(shared.count, _NAMED)
    what = (
        f"{shared.count} of {shared.of} validation images are training images, too (equal bytes; validation = "
        f"training): {named}{more}"
    )
    if _same_place(data):
        what = f"training and validation name the same folder, {shown(data.val.images)}: {what}"
    if shared.count > data.max_shared_fraction * shared.of:
        found.errors.append(
            UserError(
                f"{what}; data.max_shared_fraction allows {data.max_shared_fraction:g} of them",
                where="data.val",
                fix="give validation images of its own, or raise data.max_shared_fraction if the metric on known "
                "images is meant",
            )
        )
    else:
        found.warnings.append(f"{what}; remove them from one of the splits")


def _same_place(data: Data) -> bool:
    train, val = data.train, data.val
    same = Path(train.images) == Path(val.images)
    return same and (not isinstance(data, CocoInstances) or train.annotations == val.annotations)


def _imbalance(statistics: DataStatistics) -> Iterator[str]:
    """Name the rare classes of labelled images."""
    counts = statistics.train.samples_by_class or ()
    most = max(counts, default=0)
    rare = sorted((count, number) for number, count in enumerate(counts) if 0 < count < RARE * most)
    if rare:
        total = sum(counts)
        named = ", ".join(f"{shown(statistics.classes[number])} {count}" for count, number in rare[:_NAMED])
        named += and_more(len(rare), _NAMED)
        frequent = statistics.classes[counts.index(most)]
        val = statistics.val.samples_by_class or ()
        constant = f"{max(val) / sum(val):.3g}" if sum(val) else "unknown"
        yield (
            f"train: {len(rare)} of {len(counts)} classes have less than a tenth of the images of {shown(frequent)} "
            f"({most} of {total}): {named}; a constant prediction reaches a top1 of {constant} on validation: "
            "look at the confusion matrix of the report, or add images of the rare classes"
        )


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3])
