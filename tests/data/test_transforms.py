"""Sizes, alignment of masks, and randomness that is a function of the position."""

import random
from itertools import pairwise

import cv2
import mmcv.transforms
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from scalablevit.config.data import ImageFolder, MaskPairs, RandAugment, Split
from scalablevit.data import transforms
from scalablevit.data.labels import IGNORE
from scalablevit.data.sampler import Key
from scalablevit.data.transforms import (
    ImageCompose,
    Transform,
    augment,
    eval_transform,
    fill_color,
    scaled_size,
    train_transform,
)

import albumentations as A  # isort: skip  # after `transforms`, which keeps it from asking for its newest version

SPLIT = Split(images="i", masks="m")


def folder(**fields: object) -> ImageFolder:
    return ImageFolder(source="image_folder", root="r", train=SPLIT, val=SPLIT, **fields)  # type: ignore[arg-type]


def pairs(**fields: object) -> MaskPairs:
    return MaskPairs(source="mask_pairs", root="r", train=SPLIT, val=SPLIT, classes=["a", "b"], **fields)  # type: ignore[arg-type]


def picture(height: int, width: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


@pytest.mark.parametrize("size", [(375, 500), (500, 375), (90, 1200), (512, 512), (100, 333)])
@pytest.mark.parametrize("sides", [(512, 2048), (200, 300)])
def test_sizes_are_those_of_mmseg(size: tuple[int, int], sides: tuple[int, int]) -> None:
    resize = mmcv.transforms.Resize(scale=(sides[1], sides[0]), keep_ratio=True)
    wanted = resize({"img": np.zeros((*size, 3), np.uint8)})["img"].shape[:2]
    made = eval_transform(pairs(short_side=sides[0], long_side=sides[1]))(image=picture(*size))["image"]
    assert made.shape[:2] == scaled_size(*size, *sides) == wanted


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 1000), st.integers(0, 2000))
def test_one_side_meets_its_bound_and_none_passes_it(height: int, width: int, short: int, more: int) -> None:
    made = scaled_size(height, width, short, short + more)
    assert min(made) <= short
    assert max(made) <= short + more
    assert min(made) == short or max(made) == short + more
    assert abs(made[0] - made[1] * height / width) <= 0.5 + 0.5 * height / width or min(made) == 1


@pytest.mark.parametrize("size", [(375, 500), (333, 120), (40, 60)])
def test_classification_evaluation(size: tuple[int, int]) -> None:
    image = picture(*size)
    data = folder(image_size=224, eval_resize=256)
    made = eval_transform(data)(image=image)["image"]
    assert made.shape == (224, 224, 3)
    scaled = scaled_size(*size, 256, 10**6)
    whole = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_AREA if min(size) > 256 else cv2.INTER_LINEAR)
    top, left = (scaled[0] - 224) // 2, (scaled[1] - 224) // 2
    assert np.abs(made.astype(int) - whole[top : top + 224, left : left + 224]).mean() < 2


def test_shrinking_averages() -> None:
    grey = np.random.default_rng(0).integers(0, 2, (896, 896, 1), dtype=np.uint8) * 255
    image = np.repeat(grey, 3, axis=2)
    crop = train_transform(folder(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0)))
    key = Key(0, 0, 0)
    for made in (
        eval_transform(folder())(image=image)["image"],
        eval_transform(pairs(short_side=224))(image=image)["image"],
        augment(crop, 0, key, image)[0],
    ):
        assert made.std() < 45  # 128 / 3.5 and 128 / 4; interpolating between two pixels each way leaves 64


@pytest.mark.parametrize("extra", [{}, {"rand_augment": RandAugment()}, {"color_jitter": 0.4}])
@pytest.mark.parametrize("size", [(375, 500), (20, 300), (64, 64)])
def test_classification_training_gives_the_size(size: tuple[int, int], extra: dict[str, object]) -> None:
    transform = train_transform(folder(image_size=96, **extra))
    for position in range(5):
        image, labels = augment(transform, 0, Key(0, 0, position), picture(*size))
        assert image.shape == (96, 96, 3)
        assert image.dtype == np.uint8
        assert labels is None


@pytest.mark.parametrize("size", [(300, 400), (40, 60), (300, 60)])
def test_antialiasing_is_pillows_and_can_be_left_out(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    whole: dict[str, object] = {"image_size": 96, "eval_resize": 96, "crop_scale": (1.0, 1.0), "flip": 0.0}
    whole["crop_ratio"] = (size[1] / size[0], size[1] / size[0])
    crop = Image.fromarray(noise).resize((96, 96), Image.Resampling.BILINEAR)
    made = augment(train_transform(folder(**whole)), 0, Key(0, 0, 0), noise)[0]
    assert np.abs(made.astype(int) - np.asarray(crop)).max() <= 1
    plain = augment(train_transform(folder(**whole, antialias=False)), 0, Key(0, 0, 0), noise)[0]
    np.testing.assert_array_equal(plain, cv2.resize(noise, (96, 96), interpolation=cv2.INTER_LINEAR))
    height, width = scaled_size(*size, 96, 10**6)
    side = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 96) // 2, (width - 96) // 2
    evaluated = eval_transform(folder(**whole))(image=noise)["image"]
    assert np.abs(evaluated.astype(int) - side[top : top + 96, left : left + 96]).max() <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"antialias": False},
        {"flip": 1.0, "crop_scale": (0.9, 1.0), "crop_ratio": (2.0, 3.0)},
        {"color_jitter": 0.4},
        {"rand_augment": RandAugment()},
    ],
)
def test_images_alone_are_transformed_as_albumentations_composes(fields: dict[str, object]) -> None:
    data = folder(image_size=64, **fields)
    draws = np.random.default_rng(0)
    for ours in (train_transform(data), eval_transform(data)):
        theirs = A.Compose(list(ours.transforms))
        assert type(ours) is ImageCompose
        for position in range(60):
            height, width = draws.integers(1, 400, 2)
            noise = draws.integers(0, 256, (height, width, 3), dtype=np.uint8)
            image = noise if position % 2 else noise[:, ::-1]
            made, wanted = (augment(each, 3, Key(0, 1, position), image)[0] for each in (ours, theirs))
            assert made.flags.c_contiguous and made.dtype == np.uint8
            np.testing.assert_array_equal(made, wanted)


def test_masks_beside_images_are_transformed_too() -> None:
    image, labels = coordinates(90, 130)
    transform = train_transform(folder(image_size=64))
    made, cut = augment(transform, 0, Key(0, 0, 1), image, labels)
    wanted = augment(A.Compose(list(transform.transforms)), 0, Key(0, 0, 1), image, labels)
    np.testing.assert_array_equal(made, wanted[0])
    np.testing.assert_array_equal(cut, wanted[1])


def names(transform: Transform) -> list[str]:
    return [type(each).__name__ for each in transform.transforms]


def test_rand_augment_replaces_color_jitter() -> None:
    both = train_transform(folder(rand_augment=RandAugment(), color_jitter=0.4))
    assert names(both) == ["AntialiasedCrop", "HorizontalFlip", "RandAugmentation"]
    assert names(train_transform(folder(color_jitter=0.4)))[-1] == "ColorJitter"
    assert names(train_transform(folder())) == ["AntialiasedCrop", "HorizontalFlip"]
    assert names(train_transform(pairs(color_jitter=0.4))) == [
        "ScaleSides",
        "RandomCrop",
        "HorizontalFlip",
        "ColorJitter",
    ]


def everything() -> tuple[ImageFolder, MaskPairs]:
    return (
        folder(image_size=32, rand_augment=RandAugment()),
        pairs(short_side=64, long_side=128, crop_size=48, scale_range=(0.5, 2.0), color_jitter=0.4),
    )


@pytest.mark.parametrize("number", [0, 1])
def test_result_depends_on_seed_epoch_and_position_only(number: int) -> None:
    data, image = everything()[number], picture(60, 80)

    def made(transform: Transform, seed: int, key: Key) -> bytes:
        return augment(transform, seed, key, image)[0].tobytes()

    used = train_transform(data)
    wanted = made(train_transform(data), 3, Key(7, 2, 5))
    for position in range(6):
        made(used, 3, Key(7, 2, position))
    np.random.seed(0)
    random.seed(0)
    assert made(used, 3, Key(7, 2, 5)) == wanted
    assert made(used, 3, Key(99, 2, 5)) == wanted
    others = [made(used, 4, Key(7, 2, 5)), made(used, 3, Key(7, 3, 5)), made(used, 3, Key(7, 2, 6))]
    assert len({wanted, *others}) == 4


def test_generators_reach_nested_transforms_and_are_shared() -> None:
    inner = A.HorizontalFlip(p=0.5)
    transform = A.Compose([A.OneOf([A.Sequential([inner])], p=1.0), A.VerticalFlip(p=0.5)])
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    outcomes = {augment(transform, 0, Key(0, 0, position), image)[0].tobytes() for position in range(60)}
    assert len(outcomes) == 4  # equal draws in both would give two
    assert inner.py_random is transform.py_random
    assert inner.random_generator is transform.random_generator


def test_flips_happen_as_often_as_asked() -> None:
    data = folder(image_size=16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.25)
    transform, image = train_transform(data), picture(16, 16)
    results = [augment(transform, 0, Key(0, 0, position), image)[0] for position in range(800)]
    flipped = [(made == image[:, ::-1]).all() for made in results]
    assert all(flip or (made == image).all() for flip, made in zip(flipped, results, strict=True))
    assert abs(np.mean(flipped) - 0.25) < 0.05


def coordinates(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A picture and labels that both tell their row and column, coarsely."""
    rows, columns = np.indices((height, width))
    image = np.stack([rows * 250 // height, columns * 250 // width, np.zeros_like(rows)], axis=-1)
    return image.astype(np.uint8), (rows * 10 // height * 10 + columns * 10 // width).astype(np.uint8)


@pytest.mark.parametrize("scale_range", [(1.0, 1.0), (0.4, 0.6), (1.5, 3.0)])
def test_labels_stay_in_step_with_the_image(scale_range: tuple[float, float]) -> None:
    image, labels = coordinates(90, 130)
    data = pairs(short_side=80, long_side=200, crop_size=64, scale_range=scale_range, flip=0.5)
    transform = train_transform(data)
    for position in range(20):
        made, cut = augment(transform, 0, Key(0, 0, position), image, labels)
        assert cut is not None
        assert made.shape == (64, 64, 3)
        assert cut.shape == (64, 64)
        real = cut != IGNORE
        for channel, cells in ((0, cut // 10), (1, cut % 10)):
            off = (made[:, :, channel] / 25 - (cells + 0.5))[real]  # in cells; within one it runs from -0.5 to 0.5
            assert np.abs(off).max() < 0.75


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_nearest_labels_are_those_at_the_centers_of_the_pixels(factor: int) -> None:
    rows, columns = np.indices((60, 72), np.uint8)
    transform = A.Compose([transforms.ScaleSides(60 // factor, 72 // factor)])
    for axis, labels in ((0, rows), (1, columns)):
        made = transform(image=np.zeros((60, 72, 3), np.uint8), mask=labels)["mask"].astype(int)
        centers = factor * np.indices(made.shape)[axis] + (factor - 1) / 2
        assert np.abs(made - centers).max() <= 0.5


def test_small_images_are_padded_with_mean_color_and_ignored_label() -> None:
    data = pairs(short_side=16, long_side=32, crop_size=40, flip=0.0)
    image, labels = augment(
        train_transform(data), 0, Key(0, 0, 0), np.zeros((16, 24, 3), np.uint8), np.ones((16, 24), np.uint8)
    )
    assert labels is not None
    assert (labels[:16, :24] == 1).all()
    assert (image[:16, :24] == 0).all()
    outside = np.ones((40, 40), bool)
    outside[:16, :24] = False
    assert (labels[outside] == IGNORE).all()
    assert (image[outside] == fill_color(data)).all()
    assert fill_color(data) == (124, 116, 104)


def test_crops_reach_every_place() -> None:
    image, labels = coordinates(100, 100)
    transform = train_transform(pairs(short_side=100, long_side=100, crop_size=50, flip=0.0))
    seen: set[int] = set()
    for position in range(200):
        _, cut = augment(transform, 0, Key(0, 0, position), image, labels)
        assert cut is not None
        seen.update(np.unique(cut).tolist())
    assert seen == set(range(100))


def test_scale_factor_covers_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    real = transforms.scaled_size
    monkeypatch.setattr(transforms, "scaled_size", lambda *args: sizes.append(args[2:]) or real(*args))  # type: ignore[func-returns-value]
    transform = train_transform(pairs(short_side=100, long_side=400, crop_size=16, scale_range=(0.5, 2.0)))
    for position in range(300):
        augment(transform, 0, Key(0, 0, position), np.zeros((20, 20, 3), np.uint8))
    shorts = sorted(short for short, _ in sizes)
    assert shorts[0] in range(50, 56)
    assert shorts[-1] in range(194, 201)
    assert max(later - earlier for earlier, later in pairwise(shorts)) < 10
    assert all(abs(long - 4 * short) <= 4 for short, long in sizes)


def test_a_strip_is_cut_before_it_is_enlarged() -> None:
    """Enlarged whole, the first would have 2.56e9 columns, which no library makes."""
    transform = eval_transform(folder())
    assert (transform(image=np.full((1, 10_000_000, 3), 7, np.uint8))["image"] == np.full((224, 224, 3), 7)).all()
    strip = picture(9 * 8, 8).transpose(1, 0, 2)  # nine times as long as wide: taken as it is
    long = np.pad(strip, ((0, 0), (60, 60), (0, 0)))  # 24 times
    np.testing.assert_array_equal(transform(image=long)["image"], transform(image=strip)["image"])
    np.testing.assert_array_equal(
        transform(image=long.transpose(1, 0, 2))["image"], transform(image=strip.transpose(1, 0, 2))["image"]
    )
