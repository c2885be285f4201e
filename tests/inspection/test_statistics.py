"""Counts of a data set: of each split, and of what the splits share."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as reference

from scalablevit.config.data import CocoInstances, ImageFolder, MaskPairs, Split
from scalablevit.data.boxes import compare_masks, scale_factors
from scalablevit.data.shapes import encode_rle
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import check_split
from scalablevit.inspection.findings import find_problems
from scalablevit.inspection.statistics import (
    DataStatistics,
    SharedImages,
    SkippedFiles,
    SplitStatistics,
    group_skipped,
    shared_images,
    split_statistics,
    unit_of,
)
from scalablevit.inspection.statistics_table import statistics_rows, unknown_text

FOLDERS: dict[str, Any] = {"train": Split(images="train"), "val": Split(images="val")}


def picture(file: Path, grey: int, size: tuple[int, int] = (8, 8)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(file)


def counted(data: Any, split: Any = "train") -> SplitStatistics:
    source = open_source(data, split, Path("/"))
    return split_statistics(source, data, check_split(source, data, 2))


def test_samples_by_class_and_files_left_out(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, count in (("cat", 3), ("dog", 1)):
            for number in range(count):
                picture(tmp_path / split / name / f"{number}.png", number)
    for name in ("a.TXT", "b.txt", "c", "d.heic"):
        (tmp_path / "train/cat" / name).write_text("x")
    statistics = counted(ImageFolder(source="image_folder", root=str(tmp_path), **FOLDERS))
    assert statistics.samples_by_class == statistics.by_class == (3, 1)
    assert (statistics.samples, statistics.looked_at, statistics.turned) == (4, 4, 0)
    assert statistics.objects_by_class is statistics.pixels is statistics.boxes is None
    assert statistics.left_out == (
        SkippedFiles(".txt", 2, ("cat/a.TXT", "cat/b.txt")),
        SkippedFiles("", 1, ("cat/c",)),
        SkippedFiles(".heic", 1, ("cat/d.heic",)),
    )


def test_files_left_out_name_the_first_of_many_and_folders() -> None:
    assert group_skipped((".git/", *(f"{n}.xml" for n in range(9)))) == (
        SkippedFiles(".xml", 9, tuple(f"{n}.xml" for n in range(5))),
        SkippedFiles("/", 1, (".git/",)),
    )


@pytest.mark.parametrize(
    ("reduce", "by_class", "ignored"), [(False, (60, 30, 8), 2), (True, (30, 8, 0), 62)]
)  # values 0: 60, 1: 30, 2: 8, 255: 2
def test_pixels_by_class_and_ignored(tmp_path: Path, reduce: bool, by_class: tuple[int, ...], ignored: int) -> None:
    mask = np.repeat(np.array([0, 1, 2, 255], np.uint8), [60, 30, 8, 2]).reshape(10, 10)
    picture(tmp_path / "i/0.png", 0, (10, 10))
    (tmp_path / "m").mkdir()
    Image.fromarray(mask).save(tmp_path / "m/0.png")
    split = Split(images="i", masks="m")
    data = MaskPairs(source="mask_pairs", root=str(tmp_path), train=split, val=split, classes=["a", "b", "c"],
                     reduce_zero_label=reduce)  # fmt: skip
    pixels = counted(data).pixels
    assert pixels is not None
    assert (pixels.by_class, pixels.ignored) == (by_class, ignored)
    assert pixels.by_value == {0: 60, 1: 30, 2: 8, 255: 2}
    assert pixels.ignored_share == ignored / 100
    assert pixels.values == ((1, 2, 3) if reduce else (0, 1, 2))


def test_pixels_belong_to_the_right_class_in_a_models_order(tmp_path: Path) -> None:
    """Labels are those of the model; the masks' values stay the recipe's."""
    mask = np.repeat(np.array([0, 1], np.uint8), [70, 30]).reshape(10, 10)
    picture(tmp_path / "i/0.png", 0, (10, 10))
    (tmp_path / "m").mkdir()
    Image.fromarray(mask).save(tmp_path / "m/0.png")
    split = Split(images="i", masks="m")
    data = MaskPairs(source="mask_pairs", root=str(tmp_path), train=split, val=split, classes=["a", "b", "c"])
    source = open_source(data, "val", Path("/")).with_classes(("c", "a", "b"))
    statistics = split_statistics(source, data, check_split(source, data, 2))
    assert statistics.pixels is not None
    assert (statistics.pixels.by_class, statistics.pixels.values) == ((0, 70, 30), (2, 0, 1))
    alone = DataStatistics(source.classes, unit_of(data), train=statistics, val=statistics, shared=None, unknown=())
    (error, *_) = find_problems(alone, data).errors
    assert error.what.startswith("class c (mask value 2) has no pixels")
    assert "pixels by mask value: 0 (a) 70, 1 (b) 30" in error.what


def test_a_users_section_counts_in_the_unit_of_the_section_that_it_extends(tmp_path: Path) -> None:
    class Layers(MaskPairs):
        source: Literal["layers"]  # type: ignore[assignment]

    split = Split(images="i", masks="m")
    layers = Layers(source="layers", root=str(tmp_path), train=split, val=split, classes=["a", "b"])
    assert unit_of(layers) == "pixels"
    assert unit_of(ImageFolder(source="image_folder", root=str(tmp_path), **FOLDERS)) == "images"


# --- COCO ---


def coco(folder: Path, boxes: list[list[float]], **options: Any) -> CocoInstances:
    """One image of 200 x 100 pixels (width x height) with a rectangle as polygon for each box, and one without any."""
    objects = options.pop("objects", [{}] * len(boxes))
    for number in (1, 2):
        picture(folder / f"images/{number}.png", number, (200, 100))
    images = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 100} for n in (1, 2)]
    annotations = []
    for number, ((x, y, w, h), more) in enumerate(zip(boxes, objects, strict=True), 1):
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append({"id": number, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "area": w * h,
                            "iscrowd": 0, "segmentation": [polygon], **more})  # fmt: skip
    categories = [{"id": n, "name": name} for n, name in ((1, "a"), (2, "b"))]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "a.json").write_text(json.dumps(content))
    split = Split(images="images", annotations="a.json")
    return CocoInstances(source="coco", root=str(folder), train=split, val=split, **options)


def test_objects_by_class_and_by_size_before_and_after_scaling(tmp_path: Path) -> None:
    boxes: list[list[float]] = [[0, 0, 10, 10], [0, 0, 32, 32], [0, 0, 40, 40], [0, 0, 198, 98]]
    objects = [{}, {}, {"category_id": 2}, {"iscrowd": 1}]
    data = coco(tmp_path, boxes, objects=objects, short_side=400, long_side=600)  # scaled by 3, the long side's limit
    statistics = counted(data)
    assert statistics.objects_by_class == statistics.by_class == (2, 1)
    assert statistics.boxes is not None
    assert (statistics.boxes.annotations, statistics.boxes.objects, statistics.boxes.crowds) == (4, 3, 1)
    assert statistics.boxes.empty_images == 1
    assert statistics.boxes.by_size == {"small": 2, "medium": 1, "large": 0}, "32 x 32 is counted once"
    assert statistics.boxes.by_scaled_size == {"small": 1, "medium": 1, "large": 1}, "30 x 30, 96 x 96, 120 x 120"
    assert statistics.boxes.scaled_side == 96, "the median, without the crowd"


def test_boxes_clipped_dropped_below_a_pixel_and_read_as_corners(tmp_path: Path) -> None:
    boxes: list[list[float]] = [
        [190, 90, 20, 20],  # clipped; no corners
        [300, 10, 5, 5],  # dropped: out of the image
        [10, 10, 0, 5],  # dropped: no width
        [10, 10, 1.5, 50],  # less than a pixel wide when halved
        [20, 20, 60, 60],
    ]
    found = counted(coco(tmp_path, boxes, short_side=50, long_side=100)).boxes
    assert found is not None
    assert (found.annotations, found.objects) == (5, 3)
    assert (found.clipped, found.dropped, found.reach_out) == (1, 2, 2)
    assert (found.below_pixel, found.corners, found.largest) == (1, 1, 300.0)


def test_boxes_that_disagree_with_their_masks_and_masks_without_area(tmp_path: Path) -> None:
    boxes: list[list[float]] = [[10, 10, 30, 30]] * 5
    near, far = ([[10 + by, 10, 40, 10, 40, 40, 10, 40]] for by in (3.0, 3.1))
    for shift, polygons in ((3.0, near), (3.1, far)):
        polygons[0][6] = 10 + shift  # the left side as a whole
    two = [[10, 10, 20, 10, 20, 40], [30, 10, 40, 10, 40, 40]]
    line = [[10, 10, 40, 40, 10, 10]]
    objects = [{"segmentation": each} for each in (near, far, two, line)] + [{}]
    found = counted(coco(tmp_path, boxes, objects=objects)).boxes
    assert found is not None
    assert (found.loose, found.loose_images) == (1, ("1.png",))
    assert (found.flat, found.flat_images) == (1, ("1.png",))


def test_objects_of_one_class_with_equal_boxes_are_counted_but_not_crowds(tmp_path: Path) -> None:
    boxes: list[list[float]] = [[10, 10, 30, 30]] * 6 + [[10, 10, 30, 31]]
    objects = [{}, {}, {}, {"category_id": 2}, {"image_id": 2}, {"iscrowd": 1}, {}]
    found = counted(coco(tmp_path, boxes, objects=objects)).boxes
    assert found is not None and (found.doubled, found.doubled_images) == (2, ("1.png",))


def test_run_lengths_are_compared_as_polygons_are_but_not_those_of_crowds(tmp_path: Path) -> None:
    def mask(left: int, right: int = 40) -> NDArray[np.bool_]:
        region = np.zeros((100, 200), np.bool_)
        region[10:40, left:right] = True
        return region

    shapes = [{"counts": encode_rle(mask(left))} for left in (13, 14, 14)]
    shapes += [{"counts": reference.encode(np.asfortranarray(mask(14), np.uint8))["counts"].decode()}]
    shapes += [{"counts": encode_rle(mask(40))}]  # nothing
    objects = [{"segmentation": {"size": [100, 200], **shape}} for shape in shapes]
    objects[2]["iscrowd"] = 1
    found = counted(coco(tmp_path, [[10, 10, 30, 30]] * 5, objects=objects)).boxes
    assert found is not None
    assert (found.loose, found.loose_images, found.flat, found.flat_images) == (2, ("1.png",), 1, ("1.png",))


def test_polygons_that_reach_out_of_the_image_are_cut_as_their_boxes_are(tmp_path: Path) -> None:
    found = counted(coco(tmp_path, [[180, 80, 60, 60]])).boxes
    assert found is not None and (found.clipped, found.loose) == (1, 0)


def test_nothing_to_compare() -> None:
    nothing = compare_masks([], np.zeros((0, 4), np.float32), np.zeros((0, 2), np.int64))
    assert nothing.loose.shape == nothing.flat.shape == (0,)


def test_without_masks_polygons_are_not_judged(tmp_path: Path) -> None:
    found = counted(coco(tmp_path, [[1, 1, 20, 20]], instance_masks=False)).boxes
    assert found is not None and found.loose is None and found.flat is None


def test_the_scale_is_that_of_the_transform() -> None:
    from scalablevit.data.transforms import scaled_size

    sizes = np.array([[480, 640], [640, 480], [100, 1000], [300, 300]])
    for (height, width), factor in zip(sizes.tolist(), scale_factors(sizes, 800, 1333), strict=True):
        assert scaled_size(height, width, 800, 1333) == pytest.approx((height * factor, width * factor), abs=0.51)


# --- both splits ---


def test_shared_images_are_those_of_equal_bytes_whatever_their_name_and_class(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"train/cat/{number}.png", number)
        picture(tmp_path / f"val/dog/{number}.png", number + 2)
    picture(tmp_path / "train/dog/0.png", 50)
    picture(tmp_path / "val/cat/0.png", 60)
    data = ImageFolder(source="image_folder", root=str(tmp_path), **FOLDERS)
    train, val = (open_source(data, split, Path("/")) for split in ("train", "val"))  # type: ignore[arg-type]
    expected = SharedImages(2, 5, (("dog/0.png", "cat/2.png"), ("dog/1.png", "cat/3.png")))
    assert shared_images(train, val) == expected
    for file in ("train/cat/0.png", "val/cat/0.png"):  # both unreadable: that is nothing shared
        (tmp_path / file).unlink()
    for source in (train, val):
        source.contents = None  # looked at again
    assert shared_images(train, val) == SharedImages(2, 4, expected.names)


def test_equal_images_of_several_classes_are_counted_in_each_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, greys in (("cat", (1, 2, 3, 3)), ("dog", (2, 4)), ("emu", (5, 2))):
            for place, grey in enumerate(greys):
                picture(tmp_path / split / name / f"{place}.png", grey + 100 * (split == "val"))
    data = ImageFolder(source="image_folder", root=str(tmp_path), **FOLDERS)
    train, val = (open_source(data, split, Path("/")) for split in ("train", "val"))  # type: ignore[arg-type]
    found = shared_images(train, val)
    assert found == SharedImages(0, 8, (), 4, (("cat/1.png", "dog/0.png"), ("dog/0.png", "emu/1.png")) * 2)


def test_augmented_copies_by_roboflows_names_are_counted(tmp_path: Path) -> None:
    for split, names in (
        ("train", ("a_jpg.rf.1", "a_jpg.rf.2", "b_jpg.rf.3", "d")),
        ("val", ("a_jpg.rf.4", "c_jpg.rf.5", "d")),
    ):
        for number, name in enumerate(names):
            picture(tmp_path / split / f"cat/{name}.png", number + 100 * (split == "val"))
        picture(tmp_path / split / "dog/b_jpg.rf.6.png", 50 + 100 * (split == "val"))
    data = ImageFolder(source="image_folder", root=str(tmp_path), **FOLDERS)
    train, val = (open_source(data, split, Path("/")) for split in ("train", "val"))  # type: ignore[arg-type]
    found = shared_images(train, val)
    assert (found.count, found.copies, found.copied) == (0, 2, ("cat/a_jpg.rf.4.png", "dog/b_jpg.rf.6.png"))


def made(by_class: tuple[int, ...], classes: tuple[str, ...], **fields: Any) -> DataStatistics:
    split = SplitStatistics(samples=sum(by_class), looked_at=sum(by_class), samples_by_class=by_class,
                            objects_by_class=None, pixels=None, boxes=None, turned=0, turned_images=(),
                            left_out=())  # fmt: skip
    values: dict[str, Any] = {"train": split, "val": split, "shared": SharedImages(0, 4, ()), "unknown": (), **fields}
    return DataStatistics(classes=classes, unit="images", **values)


def test_it_comes_back_from_json(tmp_path: Path) -> None:
    data = coco(tmp_path, [[1, 1, 20, 20]])
    statistics = DataStatistics(classes=("a", "b"), unit="objects", train=counted(data), val=counted(data, "val"),
                                shared=SharedImages(1, 2, (("x", "y"),)), unknown=("something",))  # fmt: skip
    assert DataStatistics.from_json(statistics.to_json()) == statistics
    for damaged in ("", "{}", "[1]", statistics.to_json()[:-5]):
        with pytest.raises(ValueError, match="no statistics"):
            DataStatistics.from_json(damaged)


def test_absent_classes_are_those_of_known_counts() -> None:
    assert made((3, 0, 1, 0), ("a", "b", "c", "d")).absent("val") == (1, 3)
    unread = SplitStatistics(4, 4, None, None, None, None, 0, (), ())
    assert made((1,), ("a",), train=unread).absent("train") == ()


def test_a_fact_of_one_split_is_zero_in_the_other(tmp_path: Path) -> None:
    clipped, whole = coco(tmp_path / "a", [[190, 90, 20, 20]]), coco(tmp_path / "b", [[1, 1, 20, 20]])
    statistics = DataStatistics(("a", "b"), "objects", counted(clipped), counted(whole, "val"), None, ())
    assert ("boxes clipped", "1", "0") in statistics_rows(statistics)


def test_a_long_list_of_classes_is_cut_and_its_rest_added_up() -> None:
    names = tuple(f"c{number:02d}" for number in range(20))
    rows = statistics_rows(made(tuple(range(20)), names), 12)
    assert rows[0] == ("", "training", "validation") and rows[1] == ("images", "190", "190")
    assert rows[2] == ("images of c00", "0", "0") and rows[13] == ("images of c11", "11", "11")
    assert rows[14] == ("... and 8 more", "124", "124")  # 12 + ... + 19
    assert rows[15:] == [("also in training", "", "0 of 4")]
    assert ("images of c12", "12", "12") in statistics_rows(made(tuple(range(13)), names[:13]), 12), (
        "one more is as short"
    )


def test_facts_that_are_zero_or_unknown_have_no_row(tmp_path: Path) -> None:
    data = coco(tmp_path, [[1, 1, 20, 20], [190, 90, 20, 20]])
    statistics = DataStatistics(("a", "b"), "objects", counted(data), counted(data, "val"), None, ("x", "y"))
    rows = {row[0]: row[1:] for row in statistics_rows(statistics)}
    assert rows["boxes clipped"] == ("1", "1") and rows["objects, small / medium / large"] == ("2 / 0 / 0",) * 2
    assert not {"crowds", "boxes dropped", "swapped by EXIF", "also in training", "ignored pixels"} & set(rows)
    assert unknown_text(statistics) == "x; y; pipelines/check_data.py looks at all"
