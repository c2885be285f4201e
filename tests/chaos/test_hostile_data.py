"""The corpus of `hostile_data` through the platform's own listing, checks and reading: all is used or named."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.hostile_data import (
    CLASS_FILES,
    CLASSES,
    COCO_CASES,
    COCO_FILES,
    JPEG_TOLERANCE,
    MAX_PIXELS,
    MEAN,
    PICTURE,
    SIDE,
    TREE_CASES,
    Accepted,
    Case,
    CocoCase,
    Damaged,
    Named,
    TreeCase,
    coco_content,
    image_cases,
    jpeg,
    mask_cases,
    png,
    write,
)

from scalablevit.config.data import CocoInstances, Data, ImageFolder, MaskPairs, Split
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.data.dataset import Bad, Item, SampleDataset
from scalablevit.data.names import printable
from scalablevit.data.sampler import Key
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import Depth, Report, check_split, image_notes, raise_if_fatal

pytestmark = [
    pytest.mark.row("Data: hostile images, masks, annotations and folders"),
    pytest.mark.filterwarnings("ignore:Corrupt EXIF data"),  # Pillow's, on the files that hold it
]

IMAGES, MASKS = image_cases(), mask_cases()
DEPTHS: tuple[Depth, ...] = ("headers", "masks", "pixels")


def test_the_corpus_is_large_enough():
    names = [f"{kind} {case}" for kind, cases in (("image", IMAGES), ("mask", MASKS), ("coco", COCO_CASES),
                                                  ("tree", TREE_CASES)) for case in cases]  # fmt: skip
    assert len(set(names)) == len(names)
    assert len(names) + len(COCO_FILES) + len(CLASS_FILES) >= 150


def assert_sound(report: Report, samples: int) -> None:
    assert report.complete and report.samples == samples
    assert report.unreadable == report.wrong == report.damaged == ()


class Checked:
    """A data set of many cases, listed and checked at every depth, once for all tests."""

    def __init__(self, data: Data, canary: Path) -> None:
        self.data = data
        self.canary = canary
        self.sources: dict[bool, Source] = {
            train: open_source(data, "train" if train else "val", Path("/")) for train in (True, False)
        }
        self.reports: dict[Depth, Report] = {
            depth: check_split(self.sources[True], data, 2, depth=depth) for depth in DEPTHS
        }

    def reasons(self, depth: Depth, kind: str) -> dict[str, str]:
        return {problem.path: problem.reason for problem in getattr(self.reports[depth], kind)}

    def read(self, file: Path, *, train: bool) -> Item | Bad:
        """The sample whose image or mask this is, as training or evaluation gets it."""
        source = self.sources[train]
        number = next(
            i for i, sample in enumerate(source) if file.name in (sample.image.name, getattr(sample.mask, "name", ""))
        )
        return SampleDataset(source, self.data, 0, train=train)[Key(number, 0, number)]


def judge(case: Case, file: Path, checked: Checked, key: str) -> None:
    """Compare what became of a file with what the case asks for."""
    named = {depth: checked.reasons(depth, "unreadable") | checked.reasons(depth, "wrong") for depth in DEPTHS}
    train, evaluated = (checked.read(Path(str(file).replace("/train/", f"/{split}/")), train=split == "train")
                        for split in ("train", "val"))  # fmt: skip
    damaged = checked.reasons("pixels", "damaged")
    match case.outcome:
        case Accepted(pixels, tolerance):
            assert all(printable(file) not in each for each in (*named.values(), damaged))
            for item in (train, evaluated):
                assert not isinstance(item, Bad), item
                got = item[key]
                assert got.shape == pixels.shape and got.dtype == np.uint8
                assert int(np.abs(got.astype(int) - pixels).max()) <= tolerance
        case Damaged(reason):
            assert not isinstance(train, Bad) and reason in damaged[printable(file)]
        case Named(reason, by_header, fatal):
            for item in (train, evaluated):
                assert isinstance(item, Bad) and reason in item.reason and item.path.isprintable()
            assert train.path == printable(file)
            assert printable(file) not in damaged
            for depth in DEPTHS if by_header else DEPTHS[1:] if key == "mask" else DEPTHS[2:]:
                assert reason in named[depth][printable(file)]
                assert (printable(file) in checked.reasons(depth, "wrong")) == fatal


# --- images ---


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    root = tmp_path_factory.mktemp("images")
    os.environ["CANARY"] = str(root / "canary")
    for split in ("train", "val"):
        for case in IMAGES:
            write(root / split / "hostile" / case.name, case.content)
        write(root / split / "sound/0.jpg")
    return Checked(
        ImageFolder(
            source="image_folder", root=str(root), train=Split(images="train"), val=Split(images="val"),
            image_size=SIDE, eval_resize=SIDE, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0,
            max_pixels=MAX_PIXELS, mean=MEAN,
        ),
        root / "canary",
    )  # fmt: skip


@pytest.mark.parametrize("case", IMAGES, ids=str)
def test_image(case: Case, images: Checked):
    file = Path(images.data.root) / "train/hostile" / case.name
    judge(case, file, images, "image")
    assert not images.canary.exists()


def test_bad_images_stop_a_training_above_the_threshold_only(images: Checked):
    report = images.reports["pixels"]
    assert report.samples == len(IMAGES) + 1
    bad = sum(isinstance(case.outcome, Named) for case in IMAGES)
    assert len(report.unreadable) == bad and not report.wrong
    raise_if_fatal(report, bad / report.samples)
    with pytest.raises(UserErrors, match="samples cannot be read"):
        raise_if_fatal(report, (bad - 1) / report.samples)


def test_images_that_become_other_than_meant_are_counted(images: Checked):
    report = images.reports["pixels"]
    assert report.transparent == sum(case.transparent for case in IMAGES)
    assert report.low_range == sum(case.low_range for case in IMAGES)
    transparent, dark = image_notes(report)
    assert f"{report.transparent} of {report.samples} images: transparent pixels" in transparent
    assert f"{report.low_range} of {report.deep} images of 16 or 32 bits" in dark


# --- masks ---


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Checked:
    root = tmp_path_factory.mktemp("masks")
    assert len({Path(case.name).stem for case in MASKS}) == len(MASKS), "of two masks of an image one is left out"
    for split in ("train", "val"):
        for case in MASKS:
            write(root / split / "i" / Path(case.name).with_suffix(".jpg"), jpeg(PICTURE))
            write(root / split / "m" / case.name, case.content)
    return Checked(pairs(root), root / "canary")


def pairs(root: Path, classes: str | list[str] = list(CLASSES)) -> MaskPairs:  # noqa: B006
    return MaskPairs(
        source="mask_pairs", root=str(root), classes=classes, train=Split(images="train/i", masks="train/m"),
        val=Split(images="val/i", masks="val/m"), short_side=SIDE, long_side=SIDE, crop_size=SIDE, flip=0.0,
        max_pixels=MAX_PIXELS,
    )  # fmt: skip


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_mask(case: Case, masks: Checked):
    judge(case, Path(masks.data.root) / "train/m" / case.name, masks, "mask")


def test_wrong_masks_stop_a_training_at_any_threshold(masks: Checked):
    wrong = {case.name for case in MASKS if isinstance(case.outcome, Named) and case.outcome.fatal}
    assert {Path(path).name for path in masks.reasons("masks", "wrong")} == wrong
    with pytest.raises(UserErrors) as caught:
        raise_if_fatal(masks.reports["masks"], 1.0)
    assert f"{len(wrong)} of {len(MASKS)} masks do not fit" in str(caught.value)
    assert "class ids, or a palette with them as indices, in place of colours; correct the masks" in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_upright_mask_fits_an_image_that_lies(tmp_path: Path, orientation: int):
    from harness.hostile_data import exif, turned

    ids = np.zeros((SIDE // 2, SIDE), np.uint8)
    stored = turned(PICTURE[: SIDE // 2], {6: 8, 8: 6}.get(orientation, orientation))
    for split in ("train", "val"):
        write(tmp_path / split / "i/0.jpg", jpeg(stored, exif=b"Exif\0\0" + exif(orientation)))
        write(tmp_path / split / "m/0.png", png(ids))
    data = pairs(tmp_path)
    source = open_source(data, "val", Path("/"))
    for depth in ("headers", "masks"):
        assert_sound(check_split(source, data, 1, depth=depth), 1)
    item = SampleDataset(source, data.model_copy(update={"short_side": SIDE // 2}), 0, train=False)[Key(0, 0, 0)]
    assert not isinstance(item, Bad)
    assert np.abs(item["image"].astype(int) - PICTURE[: SIDE // 2]).max() <= JPEG_TOLERANCE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "train/m/0.png").unlink(), "1 images of .* have no mask in .*no other files are there"),
        (lambda root: (root / "train/m/0.png").rename(root / "train/m/0.jpg"), "1 .jpg .*JPEG changes class ids"),
        (lambda root: (root / "train/m/0.png").rename(root / "train/m/0.gif"), "1 .gif .*convert them: 0.gif to 0.png"),
        (lambda root: (root / "train/m/0.png").rename(root / "train/m/0_mask.png"), r"1 are named \{stem\}_mask.png"),
        (lambda root: (root / "train/m/0.png").rename(write(root / "train/m/0.bmp").with_suffix(".tif")),
         "1 images of .* have several masks in .*: 0.bmp and 0.tif"),
        (lambda root: ((root / "train/m/0.png").unlink(), (root / "train/m/0.png").mkdir()), "have no mask"),
        (lambda root: write(root / "train/m/1.png"), "have no image"),
        (lambda root: write(root / "train/i/0.png"), "differ only in their suffix, and so share a mask"),
        (lambda root: ((root / "train/m/0.png").unlink(), (root / "train/m/0.png").symlink_to("/etc/passwd")), "links"),
    ],
    ids=["no mask", "JPEG", "GIF", "other name", "two masks", "folder", "no image", "two images", "link out"],
)  # fmt: skip
def test_pairs_that_do_not_match_are_refused(tmp_path: Path, change: Any, said: str):
    for split in ("train", "val"):
        write(tmp_path / split / "i/0.jpg")
        write(tmp_path / split / "m/0.png", png(np.zeros((SIDE, SIDE), np.uint8)))
    change(tmp_path)
    with pytest.raises(UserError, match=f"(?s){said}"):
        open_source(pairs(tmp_path), "train", Path("/"))


@pytest.mark.parametrize("name", CLASS_FILES)
def test_class_file(name: str, tmp_path: Path):
    content, said = CLASS_FILES[name]
    for split in ("train", "val"):
        write(tmp_path / split / "i/0.jpg")
        write(tmp_path / split / "m/0.png", png(np.zeros((SIDE, SIDE), np.uint8)))
    write(tmp_path / "classes.txt", content)
    if not said:
        assert open_source(pairs(tmp_path, "classes.txt"), "train", Path("/")).classes == CLASSES
        return
    with pytest.raises(UserError, match=said) as caught:
        open_source(pairs(tmp_path, "classes.txt"), "train", Path("/"))
    assert all(line.isprintable() for line in str(caught.value).splitlines())


# --- COCO ---


def coco(root: Path, content: bytes) -> CocoInstances:
    for split in ("train", "val"):
        for name in ("a", "b"):
            write(root / split / f"{name}.png", png(PICTURE))
        write(root / f"{split}.json", content)
    return CocoInstances(
        source="coco", root=str(root), train=Split(images="train", annotations="train.json"),
        val=Split(images="val", annotations="val.json"), short_side=SIDE, long_side=SIDE, flip=0.0,
        max_pixels=MAX_PIXELS,
    )  # fmt: skip


def refusal(data: Data) -> str:
    with pytest.raises(UserError) as caught:
        open_source(data, "train", Path("/"))
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    return str(caught.value)


@pytest.mark.parametrize("case", COCO_CASES, ids=str)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_coco(case: CocoCase, tmp_path: Path):
    content = coco_content()
    case.change(content)
    data = coco(tmp_path / "set", json.dumps(content).encode())
    secret = write(tmp_path / "outside/secret.png", png(PICTURE))
    for name, target in (("link.png", secret), (".link.png", secret), ("away", secret.parent)):
        if name in json.dumps(content):
            (tmp_path / "set/train" / name).symlink_to(target)
    os.mkfifo(tmp_path / "set/train/.pipe.png")
    if case.refused:
        said = refusal(data)
        assert case.refused in said and "data.train" in said and "fix:" in said
        return
    source = open_source(data, "train", Path("/"))
    for depth in ("headers", "masks"):
        assert_sound(check_split(source, data, 1, depth=depth), 2)
    trained, evaluated = (SampleDataset(source, data, 0, train=train)[Key(0, 0, 0)] for train in (True, False))
    assert not isinstance(trained, Bad) and not isinstance(evaluated, Bad)
    assert (trained["image"] == PICTURE).all() and (evaluated["image"] == PICTURE).all()
    boxes = [list(box) for box in case.boxes]
    assert evaluated["instances"].boxes.tolist() == boxes
    assert evaluated["instances"].crowd.tolist() == [not case.masked] * len(boxes)
    assert trained["boxes"].tolist() == (boxes if case.masked else [])
    assert len(trained["masks"]) == len(trained["labels"]) == len(trained["boxes"])


@pytest.mark.parametrize("name", COCO_FILES)
def test_coco_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    content, said = COCO_FILES[name]
    assert said in refusal(coco(tmp_path, content))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "a.png").unlink(), "No such file"),
        (lambda folder: write(folder / "a.png", b""), "not an image"),
        (lambda folder: write(folder / "a.png", png(PICTURE[:16])), "the image is 32 x 16 pixels, its annot"),
        (lambda folder: ((folder / "a.png").unlink(), (folder / "a.png").mkdir()), "Is a directory"),
    ],
    ids=["missing", "zero byte", "other size", "folder"],
)  # fmt: skip
def test_annotated_images_that_are_not_there_are_named(tmp_path: Path, change: Any, said: str):
    data = coco(tmp_path, json.dumps(coco_content()).encode())
    change(tmp_path / "train")
    source = open_source(data, "train", Path("/"))
    source.digest()
    for depth in DEPTHS:
        (problem,) = check_split(source, data, 1, depth=depth).unreadable
        assert problem.path == str(tmp_path / "train/a.png") and said in problem.reason
    for train in (True, False):
        bad = SampleDataset(source, data, 0, train=train)[Key(0, 0, 0)]
        assert isinstance(bad, Bad) and said in bad.reason


# --- trees ---


@pytest.mark.parametrize("case", TREE_CASES, ids=str)
def test_tree(case: TreeCase, tmp_path: Path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            write(tmp_path / "set" / split / name / "0.jpg")
    write(tmp_path / "outside/secret.jpg")
    case.change(tmp_path)
    splits = {split: Split(images=split) for split in ("train", "val")}
    data = ImageFolder(source="image_folder", root=str(tmp_path / "set"), **splits, image_size=SIDE, eval_resize=SIDE)
    if case.refused:
        assert case.refused in refusal(data)
        return
    source = open_source(data, "train", Path("/"))
    cats = [str(sample.image.relative_to(tmp_path / "set/train/cat")) for sample in source if sample.label == 0]
    assert sorted(cats) == sorted(["0.jpg", *case.added])
    assert_sound(check_split(source, data, 1), len(cats) + 1)
    dataset = SampleDataset(source, data, 0, train=True)
    assert not any(isinstance(dataset[Key(i, 0, i)], Bad) for i in range(len(source)))


def test_a_file_that_vanishes_after_the_listing_is_named(tmp_path: Path):
    for split in ("train", "val"):
        write(tmp_path / split / "cat/0.jpg")
        write(tmp_path / split / "cat/1.jpg")
    data = ImageFolder(source="image_folder", root=str(tmp_path), train=Split(images="train"), val=Split(images="val"))
    source = open_source(data, "train", Path("/"))
    (tmp_path / "train/cat/0.jpg").unlink()
    source.digest()
    assert "No such file" in check_split(source, data, 1).unreadable[0].reason
    bad = SampleDataset(source, data, 0, train=True)[Key(0, 0, 0)]
    assert bad == Bad(0, str(tmp_path / "train/cat/0.jpg"), bad.reason)
