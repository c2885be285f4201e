"""The demo data: known, the same each time, all or nothing."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from scalablevit.config.data import ImageFolder, MaskPairs, Shapes, Split
from scalablevit.config.errors import UserError
from scalablevit.data import shapes as module
from scalablevit.data.decoding import read_mask
from scalablevit.data.shapes import CATEGORY_IDS, CLASSES, draw_dominant_shape, draw_scene, encode_rle, write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import check_split

SMALL = Shapes(train_images=13, val_images=6, image_size=48, seed=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "deep" / "shapes"
    write_shapes(SMALL, root)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def unrun(counts: list[int], side: int) -> NDArray[np.bool_]:
    """Decode run lengths, independently of the encoder."""
    flat: list[bool] = []
    for number, length in enumerate(counts):
        flat += [number % 2 == 1] * length
    return np.array(flat).reshape(side, side).T


def test_ordinary_sources_read_it(written: Path) -> None:
    folder = ImageFolder(
        source="image_folder",
        root=str(written),
        train=Split(images="classification/train"),
        val=Split(images="classification/val"),
    )
    pairs = MaskPairs(
        source="mask_pairs",
        root=str(written),
        train=Split(images="segmentation/images/train", masks="segmentation/annotations/train"),
        val=Split(images="segmentation/images/val", masks="segmentation/annotations/val"),
        classes="segmentation/classes.txt",
    )
    for data, classes in ((folder, CLASSES), (pairs, ("background", *CLASSES))):
        for split, samples in (("train", 13), ("val", 6)):
            source = open_source(data, split, Path("/"))  # type: ignore[arg-type]
            report = check_split(source, data, 2)
            assert (source.classes, len(source)) == (classes, samples)
            assert (report.unreadable, report.wrong) == ((), ())
    labels = [sample.label for sample in open_source(folder, "train", Path("/"))]
    assert np.bincount(np.array(labels)).tolist() == [3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize(("split", "images"), [("train", 13), ("val", 6)])
def test_instances_agree_with_masks_and_images(written: Path, split: str, images: int) -> None:
    coco = json.loads((written / f"detection/annotations/instances_{split}.json").read_text())
    assert [category["name"] for category in coco["categories"]] == list(CLASSES)
    assert len(coco["images"]) == images
    names = {category["id"]: category["name"] for category in coco["categories"]}
    for image in coco["images"]:
        file = written / "detection" / split / image["file_name"]
        same = written / "segmentation/images" / split / image["file_name"]
        assert file.read_bytes() == same.read_bytes()
        mask = read_mask(written / "segmentation/annotations" / split / f"{file.stem}.png", 10_000)
        drawn = np.zeros_like(mask)
        instances = [each for each in coco["annotations"] if each["image_id"] == image["id"]]
        assert instances
        for each in instances:
            region = unrun(each["segmentation"]["counts"], 48)
            rows, columns = np.nonzero(region)
            left, top, width, height = each["bbox"]
            assert each["area"] == region.sum() > 0
            assert each["iscrowd"] == 0
            assert (left, left + width - 1) == (columns.min(), columns.max())
            assert (top, top + height - 1) == (rows.min(), rows.max())
            assert not drawn[region].any()
            drawn[region] = CLASSES.index(names[each["category_id"]]) + 1
        assert (drawn == mask).all()
    ids = [each["id"] for each in coco["annotations"]]
    assert len(set(ids)) == len(ids)
    assert set(np.diff(list(CATEGORY_IDS.values()))) > {1}


@given(arrays(np.bool_, (5, 4)))
def test_run_lengths_decode_to_the_region(region: NDArray[np.bool_]) -> None:
    counts = encode_rle(region)
    flat = [number % 2 == 1 for number, length in enumerate(counts) for _ in range(length)]
    assert (region == np.array(flat).reshape(4, 5).T).all()
    assert all(length > 0 for length in counts[1:])


@given(st.integers(0, 10_000))
def test_no_shape_of_a_scene_is_hidden(seed: int) -> None:
    image, instances = draw_scene(np.random.default_rng(seed), 64)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert 1 <= len(instances) <= 4
    assert np.sum([each.visible for each in instances], axis=0).max() == 1
    assert all(each.visible.sum() >= 16 for each in instances)


def test_shapes_differ_from_each_other_and_are_large() -> None:
    regions = {name: module._draw(name, np.array([32.0, 32.0]), 24, 0.0, 64) for name in CLASSES}
    areas = {name: int(region.sum()) for name, region in regions.items()}
    assert all(400 < area < 2000 for area in areas.values())
    assert not regions["ring"][32, 32]
    assert all(regions[name][32, 32] for name in CLASSES if name != "ring")
    circle = np.hypot(*(np.indices((64, 64)) - 32)) <= 24
    assert (regions["circle"] ^ circle).mean() < 0.03
    for name in CLASSES:
        for other in CLASSES:
            assert name == other or (regions[name] ^ regions[other]).sum() > 200


def test_pictures_vary() -> None:
    images = [draw_dominant_shape(np.random.default_rng(seed), 32, "star") for seed in range(8)]
    assert len({image.tobytes() for image in images}) == 8


def test_same_parameters_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_shapes(SMALL, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(written)
    write_shapes(SMALL.model_copy(update={"seed": 5}), tmp_path / "other")
    assert contents(tmp_path / "other") != contents(written)


def test_splits_share_no_picture(written: Path) -> None:
    pictures = [
        data for name, data in contents(written).items() if name.startswith(("class", "detection")) and "." in name
    ]
    jpegs = [data for data in pictures if data[:2] == b"\xff\xd8"]
    assert len(set(jpegs)) == len(jpegs) == 2 * (13 + 6)


def test_second_call_changes_nothing(written: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in written.rglob("*")}
    write_shapes(SMALL, written)
    assert {file: file.stat().st_mtime_ns for file in written.rglob("*")} == before


def test_other_parameters_are_refused(written: Path) -> None:
    with pytest.raises(UserError, match=r"'image_size': 48.*'image_size': 64") as caught:
        write_shapes(SMALL.model_copy(update={"image_size": 64}), written)
    assert str(written) in str(caught.value)


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"was not made by data\.shapes"):
        write_shapes(SMALL, tmp_path / "photos")
    assert contents(tmp_path / "photos") == {"mine.jpg": b""}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_shapes(SMALL, tmp_path / "empty")
    assert (tmp_path / "empty/segmentation/classes.txt").is_file()


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "_write_scenes", fail)
    with pytest.raises(OSError, match="no space"):
        write_shapes(SMALL, tmp_path / "shapes")
    assert not any(tmp_path.iterdir())


def test_losing_a_race_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def somebody_was_faster(made: Path, root: Path) -> None:
        monkeypatch.setattr(os, "rename", real)
        write_shapes(SMALL, root)
        real(made, root)

    monkeypatch.setattr(os, "rename", somebody_was_faster)
    write_shapes(SMALL, tmp_path / "shapes")
    assert [entry.name for entry in tmp_path.iterdir()] == ["shapes"]


def test_processes_can_write_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        for made in [pool.submit(write_shapes, SMALL, tmp_path / "shapes") for _ in range(2)]:
            made.result(timeout=60)
    assert [entry.name for entry in tmp_path.iterdir()] == ["shapes"]
    assert len(contents(tmp_path / "shapes")) == 4 * 19 + 4
