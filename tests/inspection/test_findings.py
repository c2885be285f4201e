"""What statistics say against a data set: each kind with its counts and its way out."""

from dataclasses import replace
from typing import Any

import pytest

from scalablevit.config.data import CocoInstances, Data, ImageFolder, MaskPairs, Split, TarShards
from scalablevit.inspection.findings import Findings, find_problems
from scalablevit.inspection.statistics import Boxes, DataStatistics, Pixels, SharedImages, SkippedFiles, SplitStatistics

BOXES = Boxes(annotations=100, objects=100, crowds=0, empty_images=0, by_size={}, by_scaled_size={}, below_pixel=0,
              clipped=0, dropped=0, reach_out=0, corners=10, largest=300.0, loose=0, loose_images=(), flat=0,
              flat_images=())  # fmt: skip
NAMES = ("red", "green", "blue", "white", "black")


def split(**fields: Any) -> SplitStatistics:
    values: dict[str, Any] = {"samples": 8, "looked_at": 8, "samples_by_class": None, "objects_by_class": None,
                              "pixels": None, "boxes": None, "turned": 0, "turned_images": (), "left_out": (),
                              **fields}  # fmt: skip
    return SplitStatistics(**values)


def found(data: Data, train: SplitStatistics, val: SplitStatistics, classes: int = 2, **fields: Any) -> Findings:
    unit = {"coco": "objects", "mask_pairs": "pixels"}.get(data.source, "images")
    statistics = DataStatistics(NAMES[:classes], unit, train, val, fields.pop("shared", None), ())
    return find_problems(statistics, data.model_copy(update=fields))


def folders(**fields: Any) -> ImageFolder:
    return ImageFolder(source="image_folder", root="r", train=Split(images="t"), val=Split(images="v"), **fields)


def shards() -> TarShards:
    return TarShards(source="tar_shards", root="r", train=Split(images="t"), val=Split(images="v"))


def masks(classes: int, **fields: Any) -> MaskPairs:
    return MaskPairs(source="mask_pairs", root="r", train=Split(images="t", masks="m"),
                     val=Split(images="v", masks="n"), classes=list(NAMES[:classes]), **fields)  # fmt: skip


def coco() -> CocoInstances:
    return CocoInstances(source="coco", root="r", train=Split(images="t", annotations="t"),
                         val=Split(images="v", annotations="v"))  # fmt: skip


def with_boxes(by_class: tuple[int, ...] = (50, 50), **fields: Any) -> SplitStatistics:
    return split(objects_by_class=by_class, boxes=replace(BOXES, **fields))


def with_pixels(by_class: tuple[int, ...], by_value: dict[int, int], ignored: int = 0) -> SplitStatistics:
    return split(pixels=Pixels(by_class, ignored, by_value))


def the_error(findings: Findings) -> str:
    (error,) = findings.errors
    assert not findings.warnings
    return str(error)


def the_warning(findings: Findings) -> str:
    assert not findings.errors
    (warning,) = findings.warnings
    return warning


def test_sound_data_is_passed_without_a_word() -> None:
    few = split(samples_by_class=(30, 10))
    nothing_shared = SharedImages(0, 8, ())
    assert found(folders(), few, few, shared=nothing_shared) == Findings()
    assert found(coco(), with_boxes(), with_boxes(), shared=nothing_shared) == Findings()
    pixels = with_pixels((90, 10), {0: 90, 1: 10})
    assert found(masks(2), pixels, pixels, shared=nothing_shared) == Findings()
    unread = split(looked_at=3)
    assert found(masks(2), unread, unread) == Findings(), "what was not looked at is no finding"


# --- masks ---


def test_masks_of_0_and_255_leave_one_class_and_are_refused_with_their_values() -> None:
    good = with_pixels((90, 10), {0: 90, 1: 10})
    error = the_error(found(masks(2), with_pixels((81_000, 0), {0: 81_000, 255: 19_000}, 19_000), good))
    assert error.startswith("data.train: only class red has pixels in training, class green (mask value 1) has no pix")
    assert "pixels by mask value: 0 (red) 81,000, 255 (ignored) 19,000" in error
    assert "fix: write class ids" in error and "255 is always ignored" in error


def test_one_class_with_pixels_is_refused_in_a_long_list_too_but_only_for_training() -> None:
    good, one = with_pixels((1, 1, 1, 1, 1), {0: 1}), with_pixels((7, 0, 0, 0, 0), {0: 7})
    error = the_error(found(masks(5), one, good, 5))
    assert "only class red has pixels in training, classes green (mask value 1), blue (mask value 2)" in error
    assert "only class red has pixels in validation" in the_warning(found(masks(5), good, one, 5))
    none = with_pixels((0,) * 5, {255: 9}, 9)
    assert "no class has pixels in training" in the_error(found(masks(5), none, good, 5))


def test_a_reduced_zero_label_names_the_class_by_its_mask_value() -> None:
    reduced = with_pixels((10, 0), {0: 90, 1: 10}, 90)
    errors = found(masks(2, reduce_zero_label=True), reduced, reduced).errors
    assert [error.where for error in errors] == ["data.train", "data.val"]
    assert "class green (mask value 2) has no pixels" in str(errors[0])
    assert "0 (ignored) 90, 1 (red) 10" in str(errors[0])
    assert "set data.reduce_zero_label=false if the masks' value 0 is the first class" in str(errors[0])


# --- classes ---


@pytest.mark.parametrize("data", [folders(), shards()])
def test_images_of_one_class_are_refused(data: Data) -> None:
    error = the_error(found(data, split(samples_by_class=(9,)), split(samples_by_class=(4,)), 1))
    assert error.startswith("data.train: only class red has images in training\n") and "add images of another" in error
    one, good = split(samples_by_class=(0, 9, 0, 0, 0)), split(samples_by_class=(9,) * 5)
    error = the_error(found(data, one, good, 5))
    assert error.startswith("data.train: only class green has images in training, classes red, blue, white, black have")
    assert "only class green has images in validation" in the_warning(found(data, good, one, 5))
    assert found(coco(), with_boxes((9,)), with_boxes((9,)), 1) == Findings(), "a detector of one class is usual"


@pytest.mark.parametrize(("classes", "refused"), [(3, True), (4, False)])
def test_an_absent_class_is_refused_in_a_short_list_and_named_in_a_longer_one(classes: int, refused: bool) -> None:
    good, without = ((9,) * classes, (9,) * (classes - 1) + (0,))
    for data, made in (
        (folders(), lambda counts: split(samples_by_class=counts)),
        (coco(), with_boxes),
        (masks(classes), lambda counts: with_pixels(counts, {0: 9})),
    ):
        for splits in ((without, good), (good, without)):
            findings = found(data, *map(made, splits), classes)
            text = the_error(findings) if refused else the_warning(findings)
            words = "training" if splits[0] is without else "validation"
            assert f"class {NAMES[classes - 1]}" in text and f"in {words}" in text
            assert refused or f"(1 of {classes} classes)" in text


def test_an_absent_class_of_a_long_list_stops_where_the_recipe_says_so() -> None:
    without, good = split(samples_by_class=(9, 0, 9, 0, 9)), split(samples_by_class=(9,) * 5)
    error = the_error(found(folders(), good, without, 5, on_missing_class="stop"))
    assert error.startswith("data.val: classes green, white have no images in validation")
    assert "or set data.on_missing_class=warn" in error


# --- boxes ---


def refused_boxes(**fields: Any) -> str:
    return the_error(found(coco(), with_boxes((0, 0), **fields), with_boxes()))


def test_a_split_without_objects_is_refused_with_the_reason() -> None:
    crowds = refused_boxes(annotations=24, objects=0, crowds=24)
    assert crowds.startswith("data.train.annotations: 24 of 24 instances of training are crowds (iscrowd: 1)")
    assert "write iscrowd: 0" in crowds
    some = refused_boxes(annotations=24, objects=0, crowds=20, dropped=4)
    assert "20 of 24 instances" in some and "and 4 have no area in their image" in some
    assert "the file's list of annotations is empty" in refused_boxes(annotations=0, objects=0, largest=0.0)
    dropped = refused_boxes(annotations=24, objects=0, dropped=24)
    assert "all 24 boxes of training have no area in their image" in dropped and "x, y, width, height" in dropped
    val = the_error(found(coco(), with_boxes(), with_boxes((0, 0), annotations=0, objects=0, largest=0.0)))
    assert val.startswith("data.val.annotations: there is no object in validation")


def test_boxes_as_fractions_are_refused_whatever_the_scale_makes_of_them() -> None:
    error = refused_boxes(annotations=24, objects=24, largest=0.98)
    assert "the largest number in the 24 boxes of training is 0.98: they are fractions of the image" in error
    assert "x, y, width, height in pixels" in error and "multiply x and width by the image's width" in error


def test_boxes_that_all_vanish_when_scaled_are_refused() -> None:
    error = refused_boxes(annotations=24, objects=24, below_pixel=24, largest=9.0)
    assert (
        "all 24 boxes of training are less than a pixel wide or high in the scaled image (data.short_side 800)" in error
    )


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"corners": 90, "reach_out": 10, "clipped": 10, "loose": 90},
         ["seem to be x1, y1, x2, y2", "10 of 100 reach out", "as corners 90 fit", "[x1, y1, x2 - x1, y2 - y1]"]),
        ({"reach_out": 5, "clipped": 3, "dropped": 3}, ["5 of 100 boxes reach out", "3 have no area in it"]),
        ({"corners": 89, "reach_out": 10, "clipped": 10}, ["10 of 100 boxes reach out"]),
        ({"crowds": 51}, ["51 of 100 instances are crowds"]),
        ({"below_pixel": 2}, ["2 of 100 objects are less than a pixel", "a larger data.short_side (800)"]),
        ({"loose": 2, "loose_images": ("a.jpg",)}, ["2 of 100 boxes disagree with their masks", "a.jpg"]),
        ({"doubled": 2, "doubled_images": ("a.jpg",)}, ["2 of 100 objects are annotated twice", "a.jpg"]),
        ({"empty_images": 5}, ["5 of 8 images have no object", "leave images that nobody has labelled out"]),
        ({"large_areas": 2}, ["2 of 100 instances have an area larger than their box"]),
        ({"flat": 1, "flat_images": ("b.jpg",)}, ["1 of 100 objects have masks without area", "b.jpg"]),
    ],
)  # fmt: skip
def test_strange_boxes_get_one_warning_with_their_counts(fields: dict[str, Any], parts: list[str]) -> None:
    warning = the_warning(found(coco(), with_boxes(), with_boxes(**fields)))
    assert warning.startswith("val: ") and all(part in warning for part in parts), warning


@pytest.mark.parametrize(
    "fields",
    [
        {"reach_out": 1, "clipped": 1},
        {"corners": 100, "reach_out": 1},
        {"loose": 1},
        {"crowds": 50},
        {"without_area": 100},
        {"large_areas": 1},
    ],
)
def test_few_strange_boxes_are_not_worth_a_word(fields: dict[str, Any]) -> None:
    assert found(coco(), with_boxes(**fields), with_boxes()) == Findings()


# --- both splits ---


def test_shared_images_are_refused_above_the_limit_and_named_below() -> None:
    some, shared = split(samples_by_class=(9, 9)), SharedImages(2, 100, (("cat/a.jpg", "dog/b.jpg"),))
    error = the_error(found(folders(), some, some, shared=shared))
    assert error.startswith("data.val: 2 of 100 validation images are training images, too (equal bytes")
    assert "cat/a.jpg = dog/b.jpg" in error and "data.max_shared_fraction allows 0.01 of them" in error
    warning = the_warning(found(folders(), some, some, shared=shared, max_shared_fraction=0.02))
    assert warning.startswith("2 of 100 validation images are training images") and "remove them" in warning
    assert found(folders(), some, some, shared=None) == Findings(), "not known"


def test_equal_images_of_several_classes_get_a_warning() -> None:
    some, shared = split(samples_by_class=(9, 9)), SharedImages(0, 100, (), 3, (("cat/a.jpg", "dog/b.jpg"),))
    warning = the_warning(found(folders(), some, some, shared=shared))
    assert warning.startswith("3 images have the bytes of one of another class: cat/a.jpg = dog/b.jpg and 2 more;")


def test_augmented_copies_of_training_images_get_a_warning() -> None:
    some, shared = split(samples_by_class=(9, 9)), SharedImages(0, 100, (), copies=3, copied=("a_jpg.rf.4.png",))
    warning = the_warning(found(folders(), some, some, shared=shared))
    assert warning.startswith(
        "3 of 100 validation images have the name of a training image before Roboflow's .rf. (a_j"
    )


def test_splits_that_name_the_same_folder_are_told_so() -> None:
    some, shared = split(samples_by_class=(9, 9)), SharedImages(8, 8, ())
    same = {"train": Split(images="./a"), "val": Split(images="a/")}
    assert "training and validation name the same folder, a/: 8 of 8" in the_error(
        found(folders().model_copy(update=same), some, some, shared=shared)
    )
    common = {"train": Split(images="a", annotations="t.json"), "val": Split(images="a", annotations="v.json")}
    boxes = with_boxes()
    assert "same folder" not in the_error(found(coco().model_copy(update=common), boxes, boxes, shared=shared)), (
        "usual for COCO"
    )


def test_rare_classes_are_named_with_what_a_constant_prediction_reaches() -> None:
    warning = the_warning(found(folders(), split(samples_by_class=(95, 5)), split(samples_by_class=(38, 2))))
    assert "1 of 2 classes have less than a tenth of the images of red (95 of 100): green 5" in warning
    assert "a constant prediction reaches a top1 of 0.95 on validation" in warning
    tenth = split(samples_by_class=(50, 5))
    assert found(folders(), tenth, tenth) == Findings()


def test_images_that_exif_turns_within_their_size_get_a_warning_with_the_way_out() -> None:
    good = with_pixels((90, 10), {0: 90, 1: 10})
    warning = the_warning(found(masks(2), good, replace(good, flipped=2, flipped_images=("a.jpg", "b.jpg"))))
    assert warning.startswith("val: EXIF's orientation turns or mirrors 2 images without a change of their size (a.jpg")
    assert "remove the orientation from these files" in warning


def test_class_names_that_differ_in_case_alone_get_a_warning() -> None:
    some = split(samples_by_class=(9, 9, 9, 9))
    statistics = DataStatistics(("Cat", "dog", "cat ", "bird"), "images", some, some, None, ())
    warning = the_warning(find_problems(statistics, folders()))
    assert warning == "1 class names differ in case or spaces alone (Cat and cat ): make them one class if they are one"


def test_values_of_several_colours_get_a_warning() -> None:
    good = with_pixels((90, 10), {0: 90, 1: 10})
    several = replace(good, pixels=replace(good.pixels, recolored={1: ("red in a.png", "blue in b.png")}))
    warning = the_warning(found(masks(2), several, good))
    assert warning.startswith("train: 1 mask values have several colours in the masks' palettes, such as 1: red in a.p")


def test_files_of_several_pages_get_a_warning() -> None:
    some = split(samples_by_class=(9, 9))
    warning = the_warning(found(folders(), replace(some, paged=7, paged_files=("a.tif", "b.gif")), some))
    assert warning.startswith("train: 7 files have several pages or frames (a.tif, b.gif), and only the first is read")


def test_images_of_kinds_that_are_not_read_get_a_warning_and_other_files_none() -> None:
    files = (SkippedFiles(".heic", 7, ("a.heic", "b.heic")), SkippedFiles(".txt", 7, ("a.txt",)))
    some = split(samples_by_class=(9, 9))
    warning = the_warning(found(folders(), replace(some, left_out=files), some))
    assert warning.startswith("train: 7 files in .heic are left out (a.heic, b.heic)")
