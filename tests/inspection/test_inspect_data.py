"""The one look at a recipe's data: both splits, all refusals at once, and what a deadline leaves open."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.data import CocoInstances, Data, ImageFolder, MaskPairs, Shapes, Split
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data import progress
from scalablevit.data.progress import Progress
from scalablevit.inspection import inspect_data as inspection
from scalablevit.inspection.inspect_data import Inspection, inspect_data


def looked(data: Data, **options: Any) -> Inspection:
    return inspect_data(data, Path("/"), 2, **options)


@pytest.fixture
def folders(tmp_path: Path) -> ImageFolder:
    for number, (split, name) in enumerate((s, c) for s in ("train", "val") for c in ("cat", "dog")):
        for place in range(2):
            file = tmp_path / split / name / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, place, 0)).save(file)
    return ImageFolder(source="image_folder", root=str(tmp_path), train=Split(images="train"), val=Split(images="val"))


def test_sound_data(folders: ImageFolder) -> None:
    found = looked(folders)
    assert found.statistics is not None and found.warnings == found.errors == found.unfit == ()
    assert found.statistics.train.samples_by_class == found.statistics.val.samples_by_class == (2, 2)
    assert found.statistics.shared is not None and found.statistics.shared.count == 0
    assert found.statistics.unknown == () and [len(each) for each in found.sources.values()] == [4, 4]
    found.raise_errors()


@pytest.mark.parametrize("source", ["image_folder", "mask_pairs", "coco"])
def test_the_built_in_shapes_pass(tmp_path: Path, source: str) -> None:
    shapes = {"shapes": Shapes(train_images=18, val_images=12, image_size=48), "root": str(tmp_path / "shapes")}
    data: Data
    if source == "image_folder":
        data = ImageFolder(source=source, train=Split(images="classification/train"),
                           val=Split(images="classification/val"), **shapes)  # fmt: skip
    elif source == "mask_pairs":
        splits = {s: Split(images=f"segmentation/images/{s}", masks=f"segmentation/annotations/{s}")
                  for s in ("train", "val")}  # fmt: skip
        data = MaskPairs(source=source, classes="segmentation/classes.txt", **splits, **shapes)
    else:
        splits = {s: Split(images=f"detection/{s}", annotations=f"detection/annotations/instances_{s}.json")
                  for s in ("train", "val")}  # fmt: skip
        data = CocoInstances(source="coco", **splits, **shapes)
    found = looked(data)
    found.raise_errors()
    assert found.statistics is not None and found.statistics.absent("train") == ()
    if found.statistics.train.boxes is not None:
        boxes = found.statistics.train.boxes
        assert (boxes.loose, boxes.flat, boxes.clipped, boxes.dropped, boxes.crowds) == (0, 0, 0, 0, 0)


def test_copies_of_training_images_in_validation_are_refused(folders: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "val/dog/copy.png").write_bytes((tmp_path / "train/cat/1.png").read_bytes())
    with pytest.raises(UserError, match=r"1 of 5 validation images .*dog/copy.png = cat/1.png"):
        looked(folders).raise_errors()
    allowed = folders.model_copy(update={"max_shared_fraction": 0.2})
    assert "1 of 5 validation images" in looked(allowed).warnings[0]
    same = folders.model_copy(update={"val": folders.train})
    with pytest.raises(UserError, match="name the same folder, train: 4 of 4"):
        looked(same).raise_errors()


def test_refusals_of_files_and_of_the_whole_come_together(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(4):
            image, mask = (tmp_path / f"{kind}/{split}/{number}.png" for kind in ("i", "m"))
            for file in (image, mask):
                file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, len(split))).save(image)
            value = 9 if split == "train" and number == 0 else 255 * (number % 2)
            Image.fromarray(np.full((8, 8), value, np.uint8)).save(mask)
    splits = {split: Split(images=f"i/{split}", masks=f"m/{split}") for split in ("train", "val")}
    data = MaskPairs(source="mask_pairs", root=str(tmp_path), classes=["background", "object"], **splits)
    found = looked(data)
    with pytest.raises(UserErrors) as caught:
        found.raise_errors()
    first, second = map(str, caught.value.errors)
    assert first.startswith("data.val: only class background has pixels in validation")
    assert "0 (background) 128, 255 (ignored) 128" in first
    assert second.startswith("data.train: 1 of 4 masks do not fit"), "its classes are not judged by what is left"


def test_categories_that_differ_are_refused_before_the_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for split, ids in (("train", (1, 2)), ("val", (2, 1))):
        categories = [{"id": n, "name": name} for n, name in zip(ids, ("red", "green"), strict=True)]
        content = {"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "annotations": [],
                   "categories": categories}  # fmt: skip
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    splits = {split: Split(images="images", annotations=f"{split}.json") for split in ("train", "val")}
    data = CocoInstances(source="coco", root=str(tmp_path), **splits)
    found = looked(data)
    assert found.statistics is None and found.reports == {}
    with pytest.raises(UserError, match=r"only train has 1 \(red\), 2 \(green\); only val has 1 \(green\), 2 \(red\)"):
        found.raise_errors()
    assert len(looked(data, despite_errors=True).reports) == 2


def test_a_split_that_cannot_be_listed_does_not_hide_the_other_where_that_is_wanted(
    folders: ImageFolder, tmp_path: Path
) -> None:
    (tmp_path / "train/cat/0.png").write_bytes(b"spoilt")
    for file in (tmp_path / "val/dog").iterdir():
        file.unlink()
    quick = looked(folders)
    assert (list(quick.sources), quick.reports, len(quick.errors)) == (["train"], {}, 1)
    found = looked(folders, despite_errors=True)
    assert [len(report.unreadable) for report in found.reports.values()] == [1]
    assert len(found.errors) == len(found.unfit) == 1 and found.statistics is None


# --- time ---


def test_writing_the_built_in_shapes_takes_none_of_the_time(
    folders: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(inspection.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(inspection, "write_shapes", lambda *_: clock.__setitem__(0, 60.0))
    shapes = Shapes(train_images=1, val_images=1)
    found = looked(folders.model_copy(update={"shapes": shapes}), seconds=10.0)
    assert found.statistics is not None and found.statistics.unknown == () and found.seconds == 0.0


def test_without_time_nothing_is_guessed_and_nothing_kept(folders: ImageFolder, tmp_path: Path) -> None:
    (tmp_path / "val/dog/copy.png").write_bytes((tmp_path / "train/cat/1.png").read_bytes())
    found = looked(folders, cache=tmp_path / "cache", seconds=0.0)
    found.raise_errors()
    assert found.statistics is not None and found.statistics.shared is None
    assert found.statistics.unknown[0] == "files of 0 of 4 images of train were looked at"
    assert found.statistics.unknown[2:] == tuple(
        f"data.{split}: names and sizes: {count} of {count} files: the digest and whether the splits share images are "
        "not known"
        for split, count in (("train", 4), ("val", 5))
    )
    assert found.statistics.train.samples_by_class == (2, 2), "known from the names"
    assert not (tmp_path / "cache").exists(), "no report"


def test_enough_time_changes_nothing(folders: ImageFolder) -> None:
    assert looked(folders, seconds=600.0).statistics == looked(folders).statistics


def test_headers_alone_leave_large_contents_and_masks_open(
    folders: ImageFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = looked(folders, depth="headers").statistics
    assert small is not None and small.shared is not None and small.unknown == ()
    monkeypatch.setattr(inspection, "QUICK_S", 0.0)
    large = looked(folders, depth="headers").statistics
    assert large is not None and large.shared is None and len(large.unknown) == 2


def test_long_work_says_how_far_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = Progress("headers of /data", 12_000, "images")
    for at, more in ((9.0, 2000), (10.0, 1000), (15.0, 1000), (20.0, 2000)):
        clock[0] = at
        line.add(more)
    assert capsys.readouterr().err.splitlines() == [
        "headers of /data: 3,000 of 12,000 images, about 30 s left",
        "headers of /data: 6,000 of 12,000 images, about 20 s left",
    ]
