"""Keys to samples, and bad files to reasons."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.data import ImageFolder, MaskPairs, Split
from scalablevit.data.dataset import Bad, ImageSizes, Item, SampleDataset
from scalablevit.data.sampler import Key
from scalablevit.data.sources.opening import open_source


def good(item: Item | Bad) -> Item:
    assert not isinstance(item, Bad)
    return item


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                noise = np.random.default_rng([label, number]).integers(0, 256, (30, 40, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / split / name / f"{number}.jpg")
    return ImageFolder(
        source="image_folder",
        root=str(tmp_path),
        train=Split(images="train"),
        val=Split(images="val"),
        image_size=16,
        eval_resize=20,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> MaskPairs:
    for name in ("i", "m"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / f"i/{number}.jpg")
        Image.fromarray(np.full((30, 40), number, np.uint8)).save(tmp_path / f"m/{number}.png")
    split = Split(images="i", masks="m")
    return MaskPairs(
        source="mask_pairs",
        root=str(tmp_path),
        train=split,
        val=split,
        classes=["a", "b"],
        reduce_zero_label=True,
        short_side=16,
        long_side=64,
        crop_size=16,
    )


def dataset(data: ImageFolder | MaskPairs, *, train: bool, seed: int = 0) -> SampleDataset:
    return SampleDataset(open_source(data, "train", Path("/")), data, seed, train=train)


def test_classification_samples(folder: ImageFolder) -> None:
    for train in (True, False):
        samples = dataset(folder, train=train)
        assert len(samples) == 4
        items = [good(samples[Key(index, 0, index)]) for index in range(4)]
        assert [item["label"] for item in items] == [0, 0, 1, 1]
        assert [item["index"] for item in items] == [0, 1, 2, 3]
        assert all(item["image"].shape == (16, 16, 3) and item["image"].dtype == np.uint8 for item in items)
        assert all("mask" not in item for item in items)


def test_augmentation_follows_the_key(folder: ImageFolder) -> None:
    samples = dataset(folder, train=True)
    first = good(samples[Key(1, 0, 0)])["image"]
    assert (good(dataset(folder, train=True)[Key(1, 0, 0)])["image"] == first).all()
    for other in (Key(1, 1, 0), Key(1, 0, 1)):
        assert (good(samples[other])["image"] != first).any()
    assert (good(dataset(folder, train=True, seed=1)[Key(1, 0, 0)])["image"] != first).any()
    evaluated = dataset(folder, train=False)
    assert (good(evaluated[Key(1, 0, 0)])["image"] == good(evaluated[Key(1, 5, 3)])["image"]).all()


def test_training_images_have_the_size_of_their_step(folder: ImageFolder) -> None:
    """Four images, three a step: the second step begins in the first epoch, and has one size in both."""
    source = open_source(folder, "train", Path("/"))
    samples = SampleDataset(source, folder, 0, train=True, sizes=ImageSizes(((1, 8), (2, 12)), 3))
    sides = [good(samples[Key(0, p // 4, p % 4)])["image"].shape[0] for p in range(9)]
    assert sides == [8, 8, 8, 12, 12, 12, 16, 16, 16]
    late = Key(1, 3, 1)
    assert np.array_equal(good(samples[late])["image"], good(dataset(folder, train=True)[late])["image"])


def test_segmentation_samples(pairs: MaskPairs) -> None:
    train, evaluation = dataset(pairs, train=True), dataset(pairs, train=False)
    for index, label in enumerate([255, 0, 1]):
        item = good(train[Key(index, 0, index)])
        assert item["image"].shape == (16, 16, 3)
        assert (item["mask"] == np.full((16, 16), label)).all()
        item = good(evaluation[Key(index, 0, index)])
        assert item["image"].shape == (16, 21, 3)
        assert (item["mask"] == np.full((30, 40), label)).all()
        assert "label" not in item


def test_damaged_image_is_named_not_replaced(folder: ImageFolder) -> None:
    samples = dataset(folder, train=True)
    file = samples.source[2].image
    file.write_bytes(file.read_bytes()[:-100])
    bad = samples[Key(2, 0, 0)]
    assert isinstance(bad, Bad)
    assert (bad.index, bad.path) == (2, str(file))
    assert "cut short" in bad.reason
    file.unlink()
    assert "No such file" in str(samples[Key(2, 0, 0)])


def test_mask_that_does_not_fit_is_named(pairs: MaskPairs) -> None:
    samples = dataset(pairs, train=False)
    mask = samples.source[1].mask
    assert mask
    Image.fromarray(np.zeros((30, 41), np.uint8)).save(mask)
    assert samples[Key(1, 0, 0)] == Bad(1, str(mask), "the mask is 41 x 30 pixels, its image 40 x 30 (width x height)")
    Image.fromarray(np.full((30, 40), 3, np.uint8)).save(mask)
    assert samples[Key(1, 0, 0)] == Bad(1, str(mask), "mask values 3 are no class (classes have 1..2)")


def test_mistakes_of_the_program_are_not_bad_samples(folder: ImageFolder) -> None:
    with pytest.raises(IndexError):
        dataset(folder, train=True)[Key(4, 0, 0)]
