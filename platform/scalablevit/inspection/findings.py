"""Findings on a data set from its statistics: errors, which refuse it, and warnings."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scalablevit.config.data import CocoInstances, Data, ImageFolder, MaskPairs, SplitName, TarShards
from scalablevit.config.errors import UserError
from scalablevit.data.names import printable
from scalablevit.inspection.statistics import Boxes, DataStatistics, Pixels, SharedImages, SplitStatistics
from scalablevit.text import and_more

FEW_CLASSES = 3
"""With at most so many classes, none may be absent from a split: the metrics would be those of another task."""
FRACTION = 1.5
"""Boxes without a larger number are no pixels: they are fractions of the image, with some rounding."""
CORNERS_SHARE = 0.9
"""Boxes seem to be x1, y1, x2, y2 if at least this fraction fits into the image as such ..."""
REACHING_SHARE = 0.1
"""... and at least this fraction reaches out of the image as x, y, width, height."""
WARN_SHARE = 0.01
"""A problem of at most this fraction of the boxes is in the table only; more give a warning."""
CROWD_SHARE = 0.5
"""A larger fraction of crowds among the instances gives a warning."""
EMPTY_SHARE = 0.5
"""A larger fraction of images without an object gives a warning."""
RARE = 0.1
"""A class with less than this fraction of the most frequent class's images gets a warning."""
FOREIGN_IMAGES = frozenset({".heic", ".heif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".exr", ".dcm", ".svg"})
"""Suffixes of image formats that are not read; skipped files of them give a warning."""
_NAMED = 5
_WORDS: dict[SplitName, str] = {"train": "training", "val": "validation"}


@dataclass
class Findings:
    """Errors, which refuse the data, and warnings."""

    errors: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_problems(statistics: DataStatistics, data: Data) -> Findings:
    """Return what in the data is wrong for training; statistics that are not known give no finding.

    Args:
        statistics: of both splits.
        data: the recipe's data section.
    """
    findings = Findings()
    for split, counts in statistics.splits.items():
        before = len(findings.errors)
        if isinstance(data, CocoInstances) and counts.boxes is not None:
            _check_boxes(findings, split, counts.boxes, data)
        if len(findings.errors) == before:  # else classes are absent for that reason
            _check_classes(findings, split, statistics, data)
        findings.warnings += [f"{split}: {warning}" for warning in _file_warnings(counts)]
    _check_shared(findings, statistics, data)
    findings.warnings += _name_warnings(statistics.classes)
    if statistics.unit == "images":
        findings.warnings += _imbalance(statistics)
    return findings


def find_evaluation_problems(statistics: DataStatistics, data: Data) -> tuple[list[UserError], list[str]]:
    """Return errors and warnings of the validation split for evaluation; absent classes are only warnings."""
    boxes, classes, counts = Findings(), Findings(), statistics.val
    if isinstance(data, CocoInstances) and counts.boxes is not None:
        _check_boxes(boxes, "val", counts.boxes, data)
    if not boxes.errors:
        _check_classes(classes, "val", statistics, data)
    of_files = [f"val: {warning}" for warning in _file_warnings(counts)]
    return boxes.errors, [*boxes.warnings, *(error.what for error in classes.errors), *classes.warnings, *of_files]


def _file_warnings(counts: SplitStatistics) -> Iterator[str]:
    for skipped in counts.left_out:
        if skipped.suffix in FOREIGN_IMAGES:
            yield (
                f"{skipped.count} files in {skipped.suffix} are left out ({_first(skipped.names)}): "
                "convert them to JPEG or PNG to use them"
            )
    if counts.flipped:
        yield (
            f"EXIF's orientation turns or mirrors {counts.flipped} images without a change of their size "
            f"({_first(counts.flipped_images)}): they are read upright, and sizes cannot tell whether their masks or "
            "boxes are; if these were drawn on the stored pixels, remove the orientation from these files, else save "
            "the pixels upright"
        )
    if counts.boxes and EMPTY_SHARE * counts.samples < counts.boxes.empty_images < counts.samples:
        yield (
            f"{counts.boxes.empty_images} of {counts.samples} images have no object, so that any detection in them is "
            "wrong: leave images that nobody has labelled out of the file"
        )
    if counts.pixels and counts.pixels.recolored:
        first, masks = next(iter(counts.pixels.recolored.items()))
        yield (
            f"{len(counts.pixels.recolored)} mask values have several colours in the masks' palettes, such as {first}: "
            f"{' and '.join(masks)}; if each mask got a palette of its own, a value means several classes: write them "
            "again with one palette"
        )
    if counts.paged:
        yield (
            f"{counts.paged} files have several pages or frames ({_first(counts.paged_files)}), and only the first is "
            "read: save the others as files of their own to use them"
        )


def _check_boxes(findings: Findings, split: SplitName, boxes: Boxes, data: CocoInstances) -> None:
    where, words = f"data.{split}.annotations", _WORDS[split]
    if boxes.annotations and boxes.largest <= FRACTION:
        findings.errors.append(
            UserError(
                f"the largest number in the {boxes.annotations} boxes of {words} is {boxes.largest:.4g}: they are "
                "fractions of the image, and COCO's boxes are x, y, width, height in pixels",
                where=where,
                fix="multiply x and width by the image's width, y and height by its height",
            )
        )
    elif not boxes.objects:
        findings.errors.append(_no_object(split, boxes))
    elif boxes.below_pixel == boxes.objects:
        findings.errors.append(
            UserError(
                f"all {boxes.objects} boxes of {words} are less than a pixel wide or high in the scaled image "
                f"(data.short_side {data.short_side}); the largest number in the file's boxes is {boxes.largest:.4g}",
                where=where,
                fix="COCO's boxes are x, y, width, height in pixels of the original image",
            )
        )
    else:
        findings.warnings += [f"{split}: {warning}" for warning in _box_warnings(boxes, data)]


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
    elif boxes.reach_out + boxes.dropped > WARN_SHARE * total:
        yield (
            f"{boxes.reach_out} of {boxes.annotations} boxes reach out of their image and were clipped, "
            f"{boxes.dropped} have no area in it and were dropped; compare the images' sizes with the file's"
        )
    if boxes.crowds > CROWD_SHARE * total:
        yield (
            f"{boxes.crowds} of {boxes.annotations} instances are crowds (iscrowd: 1), which are neither learned nor "
            "evaluated; write iscrowd: 0 for single objects"
        )
    if boxes.below_pixel > WARN_SHARE * boxes.objects:
        yield (
            f"{boxes.below_pixel} of {boxes.objects} objects are less than a pixel wide or high in the scaled image, "
            f"and training leaves them out; a larger data.short_side ({data.short_side}) keeps them"
        )
    if boxes.doubled > WARN_SHARE * boxes.objects:
        yield (
            f"{boxes.doubled} of {boxes.objects} objects are annotated twice, with the same class and box, first in "
            f"{_first(boxes.doubled_images)}: evaluation takes the second for one that was missed; remove it"
        )
    if boxes.large_areas > WARN_SHARE * total:
        yield (
            f"{boxes.large_areas} of {boxes.annotations} instances have an area larger than their box, as after scaling"
            " images and boxes only; the precision of small, medium and large objects goes by area: correct the key, "
            "or remove it, and the box's area is used"
        )
    if boxes.loose is not None and boxes.loose > WARN_SHARE * boxes.objects and not corners:
        yield (
            f"{boxes.loose} of {boxes.objects} boxes disagree with their masks by more than 3 pixels, first in "
            f"{_first(boxes.loose_images)}; compute bbox from segmentation"
        )
    if boxes.flat:
        yield (
            f"{boxes.flat} of {boxes.objects} objects have masks without area, first in "
            f"{_first(boxes.flat_images)}: correct or remove them"
        )


def _check_classes(findings: Findings, split: SplitName, statistics: DataStatistics, data: Data) -> None:
    """Add an error for absent classes where there are few classes or the recipe asks for it, else a warning."""
    counts, absent = statistics.splits[split], statistics.absent(split)
    known = len(statistics.classes) - len(absent)
    one_label = isinstance(data, MaskPairs | ImageFolder | TarShards)  # others may have several classes, or none
    alone = one_label and known <= 1 and counts.by_class is not None
    if not absent and not (alone and split == "train"):
        return
    words, unit = _WORDS[split], statistics.unit
    pixels = _pixels_by_value(counts.pixels, statistics.classes, data) if counts.pixels and data else ""
    named = ", ".join(_describe_class(index, statistics.classes, counts.pixels, data) for index in absent[:_NAMED])
    named += and_more(len(absent), _NAMED)
    have = f"class {named} has" if len(absent) == 1 else f"classes {named} have"
    what = f"{have} no {unit} in {words}"
    if alone:
        first = next((name for name, count in zip(statistics.classes, counts.by_class or (), strict=True) if count), "")
        what = f"only class {printable(first)} has {unit} in {words}" if known else f"no class has {unit} in {words}"
        what += f", {have} no {unit}" if absent else ""
    fix = _class_fix(counts, data) if absent else "add images of another class: with one class, any prediction is right"
    if len(statistics.classes) <= FEW_CLASSES or (alone and split == "train"):
        findings.errors.append(UserError(what + pixels, where=f"data.{split}", fix=fix))
    elif data.on_missing_class == "stop":
        findings.errors.append(
            UserError(what + pixels, where=f"data.{split}", fix=f"{fix}, or set data.on_missing_class=warn")
        )
    else:
        effect = "they are not learned" if split == "train" else "no metric speaks of them"
        findings.warnings.append(f"{what} ({len(absent)} of {len(statistics.classes)} classes): {effect}; {fix}")


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


def _describe_class(index: int, classes: tuple[str, ...], pixels: Pixels | None, data: Data) -> str:
    value = f" (mask value {_mask_value(index, pixels, data)})" if isinstance(data, MaskPairs) else ""
    return f"{printable(classes[index])}{value}"


def _mask_value(index: int, pixels: Pixels | None, data: MaskPairs) -> int:
    return pixels.values[index] if pixels and pixels.values else index + int(data.reduce_zero_label)


def _pixels_by_value(pixels: Pixels, classes: tuple[str, ...], data: Data) -> str:
    """Return text on the masks' values and their numbers of pixels, the most frequent first."""
    if not isinstance(data, MaskPairs):
        return ""
    names = {_mask_value(index, pixels, data): printable(name) for index, name in enumerate(classes)}
    ordered = sorted(pixels.by_value.items(), key=lambda item: -item[1])
    parts = [f"{value} ({names.get(value, 'ignored')}) {count:,}" for value, count in ordered[:_NAMED]]
    return f"; pixels by mask value: {', '.join(parts)}{and_more(len(ordered), _NAMED)}"


def _check_shared(findings: Findings, statistics: DataStatistics, data: Data) -> None:
    shared = statistics.shared
    if shared is not None and shared.contradictions:
        named = _pairs(shared.contradicting) + and_more(shared.contradictions, len(shared.contradicting))
        findings.warnings.append(
            f"{shared.contradictions} images have the bytes of one of another class: {named}; leave each in one class"
        )
    if shared is not None and shared.copies > WARN_SHARE * shared.of:
        findings.warnings.append(
            f"{shared.copies} of {shared.of} validation images have the name of a training image before Roboflow's .rf."
            f" ({_first(shared.copied)}): copies of one picture belong into one split"
        )
    if shared is None or not shared.count:
        return
    what = (
        f"{shared.count} of {shared.of} validation images are training images, too (equal bytes; validation = "
        f"training): {name_shared(shared)}"
    )
    if _same_images(data):
        what = f"training and validation name the same folder, {printable(data.val.images)}: {what}"
    if shared.count > data.max_shared_fraction * shared.of:
        findings.errors.append(
            UserError(
                f"{what}; data.max_shared_fraction allows {data.max_shared_fraction:g} of them",
                where="data.val",
                fix="give validation images of its own, or raise data.max_shared_fraction if the metric on known "
                "images is meant",
            )
        )
    else:
        findings.warnings.append(f"{what}; remove them from one of the splits")


def name_shared(shared: SharedImages) -> str:
    """Return the first pairs of a validation image and the training image of equal bytes, as text."""
    return _pairs(shared.names) + and_more(shared.count, _NAMED)


def _pairs(names: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{one} = {other}" for one, other in names[:_NAMED])


def _same_images(data: Data) -> bool:
    """Return whether both splits have the same folder and, in COCO, the same file of annotations."""
    train, val = data.train, data.val
    same = Path(train.images) == Path(val.images)
    return same and (not isinstance(data, CocoInstances) or train.annotations == val.annotations)


def _name_warnings(classes: tuple[str, ...]) -> Iterator[str]:
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault("".join(name.casefold().split()), []).append(printable(name))
    if alike := [" and ".join(names) for names in by_form.values() if len(names) > 1]:
        yield (
            f"{len(alike)} class names differ in case or spaces alone ({', '.join(alike[:_NAMED])}"
            f"{and_more(len(alike), _NAMED)}): make them one class if they are one"
        )


def _imbalance(statistics: DataStatistics) -> Iterator[str]:
    """Yield a warning on the rare classes of labelled images, if there are any."""
    counts = statistics.train.samples_by_class or ()
    most = max(counts, default=0)
    rare = sorted((count, index) for index, count in enumerate(counts) if 0 < count < RARE * most)
    if rare:
        total = sum(counts)
        named = ", ".join(f"{printable(statistics.classes[index])} {count}" for count, index in rare[:_NAMED])
        named += and_more(len(rare), _NAMED)
        frequent = statistics.classes[counts.index(most)]
        val = statistics.val.samples_by_class or ()
        constant = f"{max(val) / sum(val):.3g}" if sum(val) else "unknown"
        yield (
            f"train: {len(rare)} of {len(counts)} classes have less than a tenth of the images of "
            f"{printable(frequent)} ({most} of {total}): {named}; "
            f"a constant prediction reaches a top1 of {constant} on validation: "
            "look at the confusion matrix of the report, or add images of the rare classes"
        )


def _first(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3])
