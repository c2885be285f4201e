"""COCO annotations: what is refused, what is cleaned, and that masks are pycocotools'."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as reference

from scalablevit.config.data import CocoInstances, Shapes, Split
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.coco import Annotations
from scalablevit.data.dataset import Bad, SampleDataset
from scalablevit.data.instances import decode_masks
from scalablevit.data.sampler import Key
from scalablevit.data.shapes import CLASSES, write_shapes
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import check_split

HEIGHT, WIDTH = 20, 30
DIAGONAL = reference.encode(np.asfortranarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8)))["counts"].decode()
CONTENT: dict[str, Any] = {
    "images": [
        {"id": number, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
        for number, name in ((7, "a"), (3, "b"), (9, "empty"))
    ],
    "categories": [{"id": 11, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 11, "bbox": [2, 3, 10, 8], "area": 40.5, "iscrowd": 0,
         "segmentation": [[2, 3, 12, 3, 12, 11], [2.5, 11.1, 5, 6, 8.35, 11]]},
        {"id": 2, "image_id": 3, "category_id": 2, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, 5, HEIGHT * WIDTH - 5]}},
        {"id": 3, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0,
         "segmentation": {"size": [HEIGHT, WIDTH], "counts": DIAGONAL}},
    ],
}  # fmt: skip

Change = Callable[[dict[str, Any]], Any]


def write(root: Path, change: Change | None = None, raw: str | None = None) -> Path:
    """A data set whose training annotations are changed, or replaced by `raw`."""
    content = copy.deepcopy(CONTENT)
    if change:
        change(content)
    for split in ("train", "val"):
        (root / split).mkdir(exist_ok=True, parents=True)
        for name in ("a", "b", "empty"):
            if not (file := root / split / f"{name}.png").exists():
                Image.new("RGB", (WIDTH, HEIGHT)).save(file)
    (root / "train.json").write_text(json.dumps(content) if raw is None else raw)
    (root / "val.json").write_text(json.dumps(CONTENT))
    return root


def section(root: Path, **fields: Any) -> CocoInstances:
    splits = {name: Split(images=name, annotations=f"{name}.json") for name in ("train", "val")}
    return CocoInstances(source="coco", root=str(root), **splits, **{"short_side": 20, "long_side": 30, **fields})


def opened(root: Path, **fields: Any) -> Source:
    return open_source(section(root, **fields), "train", Path("/"))


def use(root: Path) -> None:
    """All that a job does with a source."""
    data = section(root)
    source = open_source(data, "train", Path("/"))
    source.digest()
    check_split(source, data, 2)
    for train in (True, False):
        dataset = SampleDataset(source, data, 0, train=train)
        for i in range(len(source)):
            dataset[Key(i, 0, i)]


def annotation(number: int, **changes: Any) -> Change:
    return lambda content: content["annotations"][number].update(changes)


def segmentation(number: int, **changes: Any) -> Change:
    return lambda content: content["annotations"][number]["segmentation"].update(changes)


def image(**changes: Any) -> Change:
    return lambda content: content["images"][0].update(changes)


REFUSED: list[tuple[Change, str]] = [
    (annotation(0, bbox=[float("nan"), 0, 1, 1]), "bbox is not four finite numbers: number 0 (id 1)"),
    (annotation(0, bbox=[0, 0, float("inf"), 1]), "bbox is not four finite numbers"),
    (annotation(0, bbox=["1", 0, 1, 1]), 'not four finite numbers: number 0 (id 1) has ["1", 0, 1, 1]'),
    (lambda content: content["annotations"][0].pop("bbox"), "not four finite numbers: number 0 (id 1) has nothing"),
    (
        annotation(0, bbox=[0] * 99),
        f"number 0 (id 1) has [{'0, ' * 19}0,...\n",
    ),
    (annotation(0, area=float("nan")), "area is no number in 0..4294836225: number 0 (id 1) has NaN"),
    (annotation(0, iscrowd=2), "iscrowd is neither 0 nor 1: number 0 (id 1) has 2"),
    (annotation(0, id=2), "ids of annotations occur twice: 2"),
    (image(id=3), "ids of images occur twice: 3"),
    (lambda content: content["categories"][0].update(id=2), "ids of categories occur twice: 2"),
    (lambda content: content["categories"][0].update(name="cat"), "categories share a name: cat"),
    (annotation(0, category_id=5), "unknown category_id: 5"),
    (annotation(0, image_id=5), "annotations of images that are not there (image_id): 5"),
    (image(file_name="/etc/passwd"), 'file_name leads out of the folder of images: number 0 (id 7) has "/etc/passwd"'),
    (image(file_name="../train.json"), 'leads out of the folder of images: number 0 (id 7) has "../train.json"'),
    (
        image(file_name="/elsewhere/set/a.png"),
        'has "/elsewhere/set/a.png" (in the folder of images there is a.png)\n'
        "  fix: write file names relative to the folder of images",
    ),
    (image(id=None), "of images id is neither a whole number nor a text: number 0 has null"),
    (lambda content: content["images"][0].pop("id"), "id is neither a whole number nor a text: number 0 has nothing"),
    (image(id=7.5), "of images id is neither a whole number nor a text: number 0 has 7.5"),
    (lambda content: content["categories"][1].update(id="b2"), 'categories id is no whole number: number 1 has "b2"'),
    (annotation(0, category_id="dog"), 'category_id is no whole number: number 0 (id 1) has "dog"'),
    (annotation(0, id=" "), 'id is neither a whole number nor a text: number 0 has " "'),
    (annotation(0, id="02"), "ids of annotations occur twice: 2"),
    (image(file_name="./b.png"), "images share a file_name: b.png"),
    (image(width=0), 'is no whole number in 1..65535: number 0 (id 7) has {"width": 0, "height": 20}'),
    (lambda content: content["images"][1].pop("file_name"), "file_name is missing: number 1 (id 3) has nothing"),
    (
        annotation(0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]),
        "of half a point: number 0 (id 1) has [[1, 2, 3, 4, 5, 6, 7]]",
    ),
    (annotation(0, segmentation=[[1, 2, 3, 1e9, 5, 6]]), "corners more than 1000000 pixels away"),
    (annotation(0, segmentation="1"), 'segmentation is neither polygons nor run lengths: number 0 (id 1) has "1"'),
    (segmentation(1, size=[WIDTH, HEIGHT]), "another size than their image's: annotation 2"),
    (segmentation(1, counts=[3, 4]), "counts do not add up to its size"),
    (segmentation(2, counts="3:"), "counts do not add up to its size"),
    (segmentation(2, counts="0ooooo"), "counts cannot be read"),
    (segmentation(2, size=[-1, 2**40], counts="0"), "counts cannot be read"),
    (segmentation(2, size=[0, 0], counts=""), "another size than their image's: annotation 3"),
    (lambda content: content["images"].clear(), "there are no images"),
    (lambda content: content["categories"].clear(), "there are no categories"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_contradictions_are_refused_by_name(tmp_path: Path, change: Change, said: str) -> None:
    with pytest.raises(UserError) as caught:
        opened(write(tmp_path, change))
    assert said in str(caught.value)
    assert str(tmp_path / "train.json") in str(caught.value) and "data.train.annotations" in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"), [("{", "is no JSON"), ("[]", "has no list images"), ('{"images": []}', "no list annotations")]
)
def test_files_of_another_kind_are_refused(tmp_path: Path, raw: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(write(tmp_path, raw=raw))


def test_all_kinds_of_mistakes_are_named_at_once(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        annotation(0, category_id=5)(content)
        annotation(1, image_id=5)(content)

    with pytest.raises(UserErrors) as caught:
        opened(write(tmp_path, change))
    assert len(caught.value.errors) == 2


def test_of_many_wrong_values_the_first_are_shown(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"] = [{**content["images"][0], "id": [number]} for number in range(9)]

    with pytest.raises(UserError) as caught:
        opened(write(tmp_path, change))
    assert "number 0 has [0], number 1 has [1]" in caught.value.what
    assert caught.value.what.endswith("number 4 has [4] and 4 more")


def same(a: Source, b: Source) -> bool:
    """Whether two sources hold the same objects of the same images."""
    first, second = a.listing.arrays, b.listing.arrays
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def as_text(content: dict[str, Any]) -> None:
    for table, keys in (("images", ("id", "width")), ("categories", ("id",)),
                        ("annotations", ("id", "image_id", "category_id"))):  # fmt: skip
        for record in content[table]:
            record.update({key: f"0{record[key]}" for key in keys})


def as_fractions(content: dict[str, Any]) -> None:
    for record in content["annotations"]:
        record.update({key: float(record[key]) for key in ("id", "image_id", "category_id")})


def with_words(content: dict[str, Any]) -> None:
    """Ids of images and annotations that are no numbers, in the same order."""
    for record in content["images"]:
        record["id"] = f"img{record['id']}"
    for record in content["annotations"]:
        record.update(id=f"a{record['id']}", image_id=f"img{record['image_id']}")


def with_nulls(content: dict[str, Any]) -> None:
    content["annotations"][0].update(iscrowd=None)
    content["annotations"][2].update(area=None)


@pytest.mark.parametrize("change", [as_text, as_fractions, with_words, with_nulls])
def test_ids_and_nulls_that_mean_one_thing_are_read(tmp_path: Path, change: Change) -> None:
    source = opened(write(tmp_path / "changed", change))
    assert same(source, opened(write(tmp_path / "plain")))
    assert source.notes == ()


def test_numbers_as_ids_come_before_texts(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = content["annotations"][0]["image_id"] = content["annotations"][2]["image_id"] = "a"

    assert [sample.image.name for sample in opened(write(tmp_path, change))] == ["b.png", "empty.png", "a.png"]


def renamed(*names: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        for record, name in zip(content["images"], names, strict=False):
            record["file_name"] = name

    return change


NAMES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("train\\a.png", "train\\b.png"), ("2 file names were read with / for \\ and without the leading train/",)),
    (("images/a.png", "images/b.png", "images/empty.png"), ("3 file names were read without the leading images/",)),
    (("%61.png", "b%2Epng"), ("2 file names were read with their %-codes decoded",)),
    (("x%5Ca.png",),
     ("1 file names were read with their %-codes decoded and with / for \\ and without the leading x/",)),
    (("one/a.png", "two/b.png"),
     ("1 file names were read without the leading one/", "1 file names were read without the leading two/")),
]  # fmt: skip


@pytest.mark.parametrize(("names", "notes"), NAMES)
def test_names_that_mean_one_file_are_read(tmp_path: Path, names: tuple[str, ...], notes: tuple[str, ...]) -> None:
    source = opened(write(tmp_path, renamed(*names)))
    assert [sample.image.name for sample in source] == ["b.png", "a.png", "empty.png"]
    assert source.notes == notes and source.ignored == ()
    use(tmp_path)


def test_a_name_that_a_file_has_is_not_read_in_another_way(tmp_path: Path) -> None:
    write(tmp_path, renamed("x\\a.png", "%62.png"))
    for name in ("x\\a.png", "%62.png"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train" / name)
    source = opened(tmp_path)
    assert list(source.names) == ["%62.png", "x\\a.png", "empty.png"] and source.notes == ()


def test_names_in_another_unicode_form_are_read(tmp_path: Path) -> None:
    write(tmp_path, renamed("u\u0308.png"))
    (tmp_path / "train" / "a.png").rename(tmp_path / "train" / "\xfc.png")
    source = opened(tmp_path)
    assert source.names[1] == "\xfc.png" and source.notes == ("1 file names were read in another Unicode form",)


def test_names_that_may_mean_two_files_are_refused_with_both(tmp_path: Path) -> None:
    write(tmp_path, renamed("x/p/a.png"))
    (tmp_path / "train" / "p").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train" / "p" / "a.png")
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert "1 of 3 names (file_name) are of no file in" in caught.value.what
    assert "x/p/a.png: it may be a.png or p/a.png" in caught.value.what
    assert caught.value.where == "data.train.annotations" and caught.value.fix.startswith("correct the names")
    assert "remove" not in caught.value.fix
    (tmp_path / "train" / "a.png").unlink()
    assert opened(tmp_path).names[1] == "p/a.png"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("val/a.png",), "val/a.png: there is {root}/val/a.png, outside the folder of images"),
        (("x/a.png", "y/a.png"), "x/a.png: a.png would be the file of 2 names"),
        (("..%2Ftrain/a.png",), "..%2Ftrain/a.png: {out}; there, a file of that base name is a.png"),
        (("C:\\set/a.png",), "C:\\set/a.png: {out}; there, a file of that base name is a.png"),
        (("\\\\host\\set\\a.png",), "\\\\host\\set\\a.png: {out}; there, a file of that base name is a.png"),
        (("..\\..\\absent.png",), "..\\..\\absent.png: {out}"),
    ],
)
def test_names_that_lead_elsewhere_are_never_changed(tmp_path: Path, names: tuple[str, ...], reason: str) -> None:
    write(tmp_path, renamed(*names))
    with pytest.raises(UserError) as caught:
        opened(tmp_path)
    assert reason.format(root=tmp_path, out="it leads out of the folder of images") in caught.value.what


def test_missing_images_do_not_keep_the_other_names_from_being_read(tmp_path: Path) -> None:
    write(tmp_path, renamed("x/a.png", "x/b.png", "x/absent.png"))
    source = opened(tmp_path)
    assert source.notes == ("2 file names were read without the leading x/",)
    assert list(source.names) == ["b.png", "a.png", "x/absent.png"]
    report = check_split(source, section(tmp_path), 2)
    assert [Path(problem.path).name for problem in report.unreadable] == ["absent.png"]


def test_a_few_names_that_mean_no_single_file_are_left_to_the_check(tmp_path: Path) -> None:
    write(tmp_path, renamed("val/a.png", "x/b.png"))
    with pytest.raises(UserError, match="1 of 3 names"):
        opened(tmp_path)
    source = opened(tmp_path, max_bad_fraction=0.4)
    assert list(source.names) == ["b.png", "val/a.png", "empty.png"]
    assert len(check_split(source, section(tmp_path), 2).unreadable) == 1


def without(*numbers: int) -> Change:
    def change(content: dict[str, Any]) -> None:
        for number in numbers:
            content["annotations"][number].update(segmentation=[])

    return change


NO_MASKS: list[Any] = [[], None, {}, [[]], [[1, 2, 3, 4]]]


@pytest.mark.parametrize("segmentation", NO_MASKS, ids=map(str, NO_MASKS))
def test_a_few_objects_without_a_mask_are_left_out_and_counted(tmp_path: Path, segmentation: Any) -> None:
    source = opened(write(tmp_path, annotation(0, segmentation=segmentation)))
    assert source.notes == (
        "1 objects without a mask (segmentation) left out of training and ignored in evaluation, as crowds are",
    )
    assert source.annotations is not None and source.annotations.without_mask == 1
    found = source.annotations.of_image(1)
    assert found.crowd.tolist() == [True, False]
    mask = decode_masks(found.masks or [], found.size)[0]
    box = np.zeros((HEIGHT, WIDTH), np.uint8)
    box[3:11, 2:12] = 1
    np.testing.assert_array_equal(mask, box)
    use(tmp_path)


def test_a_missing_key_is_an_object_without_a_mask(tmp_path: Path) -> None:
    source = opened(write(tmp_path, lambda content: content["annotations"][0].pop("segmentation")))
    assert source.annotations is not None and source.annotations.without_mask == 1


def test_a_line_among_an_objects_polygons_is_left_out(tmp_path: Path) -> None:
    polygon = [2, 3, 12, 3, 12, 11]
    source = opened(write(tmp_path, annotation(0, segmentation=[[1, 1, 20, 19], polygon])))
    assert source.notes == ("1 polygons of less than three points left out, of objects with other polygons",)
    assert source.annotations is not None
    found = source.annotations.of_image(1)
    expected = reference.decode(reference.merge(reference.frPyObjects([polygon], HEIGHT, WIDTH)))
    np.testing.assert_array_equal(decode_masks(found.masks or [], found.size)[0], expected)


def many(count: int, bare: int) -> Change:
    def change(content: dict[str, Any]) -> None:
        model = content["annotations"][0]
        content["annotations"] = [
            {**model, "id": n, **({"segmentation": []} if n < bare else {})} for n in range(count)
        ]

    return change


@pytest.mark.parametrize(
    ("count", "bare", "taken"),
    [(12, 10, True), (12, 11, False), (400, 12, True), (400, 13, False), (3, 3, False), (1, 1, False)],
)
def test_objects_without_masks_are_refused_above_a_share_and_a_number(
    tmp_path: Path, count: int, bare: int, taken: bool
) -> None:
    write(tmp_path, many(count, bare))
    if taken:
        assert opened(tmp_path, max_bad_fraction=0.03).notes[0].startswith(f"{bare} objects without a mask")
        return
    with pytest.raises(UserError) as caught:
        opened(tmp_path, max_bad_fraction=0.03)
    assert f"{bare} of {count} annotations have no mask" in caught.value.what and "ids 0" in caught.value.what
    assert "polygons" in caught.value.fix
    assert "task.head=retinanet with data.instance_masks=false" in caught.value.fix
    assert len(opened(tmp_path, instance_masks=False)) == 3


def test_masks_that_are_missing_are_named_with_the_other_mistakes(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        without(0, 1, 2)(content)
        annotation(0, category_id=5)(content)

    with pytest.raises(UserErrors) as caught:
        opened(write(tmp_path, change))
    assert len(caught.value.errors) == 2


def test_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    source = opened(write(tmp_path))
    assert source.classes == ("cat", "dog")
    assert [sample.image.name for sample in source] == ["b.png", "a.png", "empty.png"]
    assert source.annotations is not None
    found = source.annotations.of_image(1)
    assert found.labels.tolist() == [1, 0] and found.boxes[0].tolist() == [2, 3, 12, 11]
    polygons = reference.merge(reference.frPyObjects(CONTENT["annotations"][0]["segmentation"], HEIGHT, WIDTH))
    masks = decode_masks(found.masks or [], found.size)
    np.testing.assert_array_equal(masks[0], reference.decode(polygons))
    np.testing.assert_array_equal(masks[1], np.eye(HEIGHT, WIDTH))
    crowd = source.annotations.of_image(0)
    assert crowd.crowd.tolist() == [True] and decode_masks(crowd.masks or [], crowd.size).sum() == 5
    assert len(source.annotations.of_image(2).labels) == 0


def test_boxes_are_clipped_dropped_and_counted(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        annotation(0, bbox=[-4, 3, 10, 8])(content)
        annotation(2, bbox=[1, 1, 0, 5])(content)
        content["annotations"].append({**content["annotations"][2], "id": 8, "bbox": [28, 3, -5, 3]})
        content["annotations"].append({**content["annotations"][2], "id": 9, "bbox": [40, 3, 5, 3]})

    source = opened(write(tmp_path, change))
    assert source.notes == ("1 boxes clipped to their image", "3 boxes without area in their image dropped")
    assert source.annotations is not None
    assert source.annotations.of_image(1).boxes.tolist() == [[0, 3, 6, 11]]
    again = Annotations.from_listing(source.listing)
    assert (again.box_counts["clipped"], again.box_counts["dropped"], again.without_mask) == (1, 3, 0)


@pytest.mark.parametrize("box", [[5, 5, 1e-6, 5], [29.9999999, 5, 5, 5], [-1e308, 0, 1e308, 5], [0, 0, 1e-30, 1e-30],
                                 [21.14, 5, 1e-6, 5]])  # fmt: skip
def test_the_thinnest_boxes_stop_nothing(tmp_path: Path, box: list[float]) -> None:
    use(write(tmp_path, annotation(0, bbox=box)))


def test_a_box_whose_sides_are_equal_as_fractions_of_the_image_is_dropped_and_counted(tmp_path: Path) -> None:
    """Transforms keep fractions in float32, and raise where x_max is not above x_min."""
    size, box = 601, [100.32111671916175, 5, 4.082259133871333e-06, 9]
    write(tmp_path, lambda content: (image(width=size)(content), annotation(0, bbox=box)(content)))
    Image.new("RGB", (size, HEIGHT)).save(tmp_path / "train/a.png")
    data = section(tmp_path, instance_masks=False, short_side=HEIGHT, long_side=size)
    source = open_source(data, "train", Path("/"))
    assert source.annotations is not None and source.annotations.box_counts["dropped"] == 1
    item = SampleDataset(source, data, 0, train=True)[Key(1, 0, 0)]
    assert not isinstance(item, Bad) and item["labels"].tolist() == [0]


def test_an_area_that_is_missing_or_0_is_that_of_the_box(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        annotation(0, area=0)(content)
        content["annotations"][2].pop("area")
        content["annotations"].append({**content["annotations"][1], "id": 8, "area": 63})  # of 5 x 5 pixels
        content["annotations"].append({**content["annotations"][1], "id": 9, "area": 53})

    annotations = opened(write(tmp_path, change)).annotations
    assert annotations is not None
    assert annotations.areas.tolist() == [25, 63, 53, 80, 25]
    assert (annotations.box_counts["without_area"], annotations.box_counts["large_areas"]) == (2, 1)


def test_a_box_that_is_too_small_takes_its_mask_and_label_along(tmp_path: Path) -> None:
    small = {"id": 50, "image_id": 7, "category_id": 2, "bbox": [4, 4, 0.4, 0.4], "segmentation": [[4, 4, 5, 4, 5, 5]]}
    write(tmp_path, lambda content: content["annotations"].insert(0, small))
    data = section(tmp_path, flip=0.0)
    item = SampleDataset(open_source(data, "train", Path("/")), data, 0, train=True)[Key(1, 0, 0)]
    assert not isinstance(item, Bad)
    assert item["labels"].tolist() == [1, 0]
    np.testing.assert_allclose(item["boxes"][0], [2, 3, 12, 11], atol=1e-3)
    np.testing.assert_array_equal(item["masks"][1], np.eye(HEIGHT, WIDTH))


def test_crowds_are_left_out_of_training_and_kept_for_evaluation(tmp_path: Path) -> None:
    data = section(write(tmp_path))
    source = open_source(data, "train", Path("/"))
    trained, evaluated = (SampleDataset(source, data, 0, train=train)[Key(0, 0, 0)] for train in (True, False))
    assert not isinstance(trained, Bad) and not isinstance(evaluated, Bad)
    assert trained["boxes"].shape == (0, 4) and trained["masks"].shape == (0, HEIGHT, WIDTH)
    assert evaluated["instances"].crowd.tolist() == [True]


def test_without_masks_none_are_needed_or_read(tmp_path: Path) -> None:
    write(tmp_path, lambda content: [each.pop("segmentation") for each in content["annotations"]])
    data = section(tmp_path, instance_masks=False)
    source = open_source(data, "train", Path("/"))
    item = SampleDataset(source, data, 0, train=True)[Key(1, 0, 0)]
    assert not isinstance(item, Bad)
    assert "masks" not in item and len(item["boxes"]) == 2


def test_images_that_are_missing_or_of_another_size_are_named_by_the_check(tmp_path: Path) -> None:
    write(tmp_path, image(file_name="absent.png"))
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(tmp_path / "train" / "b.png")
    data = section(tmp_path)
    source = open_source(data, "train", Path("/"))
    report = check_split(source, data, 2)
    reasons = {Path(problem.path).name: problem.reason for problem in report.unreadable}
    assert reasons.keys() == {"absent.png", "b.png"}
    assert "the image is 31 x 20 pixels, its annotations are for 30 x 20" in reasons["b.png"]
    assert isinstance(SampleDataset(source, data, 0, train=True)[Key(0, 0, 0)], Bad)


def test_files_beside_the_annotated_ones_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(write(tmp_path) / "train" / "more.png")
    assert opened(tmp_path).ignored == ("more.png",)


def test_a_link_in_a_hidden_folder_does_not_lead_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(outside / "s.png")
    root = write(tmp_path / "set", image(file_name=".hidden/s.png"))
    (root / "train" / ".hidden").symlink_to(outside)
    with pytest.raises(UserError, match="1 links"):
        opened(root)


@pytest.mark.parametrize("name", ["absent.png", ".", "sub", "a.png/b.png", "x" * 300 + ".png"])
def test_names_of_no_image_stop_nothing(tmp_path: Path, name: str) -> None:
    (write(tmp_path, image(file_name=name)) / "train" / "sub").mkdir()
    use(tmp_path)


def test_the_digest_follows_the_annotations(tmp_path: Path) -> None:
    before = opened(write(tmp_path)).digest()
    assert opened(write(tmp_path)).digest() == before
    assert opened(write(tmp_path, annotation(0, bbox=[2, 3, 10, 9]))).digest() != before


def test_the_demo_data_come_back_as_they_were_made(tmp_path: Path) -> None:
    root = tmp_path / "shapes"
    write_shapes(Shapes(train_images=4, val_images=2, image_size=64), root)
    splits = {
        name: Split(images=f"detection/{name}", annotations=f"detection/annotations/instances_{name}.json")
        for name in ("train", "val")
    }
    data = CocoInstances(source="coco", root=str(root), **splits, short_side=64, long_side=64, flip=0.0)
    source = open_source(data, "train", Path("/"))
    assert source.classes == CLASSES and source.notes == ()
    item = SampleDataset(source, data, 0, train=True)[Key(2, 0, 2)]
    assert not isinstance(item, Bad)
    by_class = np.zeros((64, 64), np.uint8)
    for label, mask in zip(item["labels"], item["masks"], strict=True):
        by_class[mask > 0] = label + 1
    with Image.open(root / "segmentation" / "annotations" / "train" / "000002.png") as png:
        np.testing.assert_array_equal(by_class, np.asarray(png))


PLACES = [("images", key) for key in ("id", "file_name", "height", "width")]
PLACES += [("categories", key) for key in ("id", "name")]
PLACES += [("annotations", k) for k in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")]
ODD = [10**400, -(10**400), 2**63, 1e308, "NaN", "\ud800", "a\0", "..", "."]
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 40), st.floats(), st.text(max_size=4), st.sampled_from(ODD)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["size", "counts", "id"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(
    where=st.one_of(st.sampled_from(PLACES), st.sampled_from(["images", "annotations", "categories", None])),
    value=VALUES,
    number=st.integers(0, 1),
)
def test_any_value_anywhere_gives_a_source_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, where: tuple[str, str] | str | None, value: Any, number: int
) -> None:
    content: Any = copy.deepcopy(CONTENT)
    if where is None:
        content = value
    elif isinstance(where, tuple):
        content[where[0]][number][where[1]] = value
    else:
        content[where] = value
    root = tmp_path_factory.getbasetemp() / "fuzz"
    write(root, raw=json.dumps(content))
    try:
        use(root)
    except UserError as error:
        assert error.what


def test_labels_count_in_a_models_order_of_classes(tmp_path: Path) -> None:
    data = section(write(tmp_path))
    source = open_source(data, "train", Path("/"), ["dog", "cat"])
    plain = opened(tmp_path)
    assert plain.classes == ("cat", "dog") and source.classes == ("dog", "cat")
    assert [source.annotations.categories, plain.annotations.categories] == [
        ((11, "dog"), (2, "cat")), ((2, "cat"), (11, "dog"))]  # fmt: skip
    for i in range(3):
        ours, theirs = source.read(i).instances, plain.read(i).instances
        assert ours.labels.tolist() == (1 - theirs.labels).tolist()
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
    assert plain.read(1).instances.labels.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"the data has the classes cat, dog; the model has cat, emu"):
        open_source(data, "train", Path("/"), ["cat", "emu"])
