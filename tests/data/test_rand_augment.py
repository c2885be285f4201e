"""Each operation against timm's on the same picture."""

import random
from collections import Counter
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from timm.data import auto_augment as timm_ops

from scalablevit.config.data import RandAugment
from scalablevit.data import rand_augment as ours
from scalablevit.data.rand_augment import OPERATIONS, rand_augment

FILL = (124, 116, 104)
GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def picture() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 220, (7, 9, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC)
    cv2.circle(image, (40, 50), 22, (250, 10, 60), -1)
    return np.asarray(image, np.uint8)


def by_timm(name: str, level: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> NDArray[np.int64]:
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: sign * value)
    to_args: Any = timm_ops.LEVEL_TO_ARG[name]
    operation: Any = timm_ops.NAME_TO_OP[name]
    args = to_args(level, {}) if to_args else ()
    options = {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
    return np.asarray(operation(Image.fromarray(picture()), *args, **options)).astype(np.int64)


def test_operations_are_those_of_timm() -> None:
    assert list(OPERATIONS) == timm_ops.rand_augment_choices("", increasing=True)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("level", [0.0, 3.0, 7.3, 9.0, 9.9])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_timms_picture(name: str, level: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = by_timm(name, level, sign, monkeypatch)
    made = OPERATIONS[name](picture(), level / 10, sign, FILL)
    assert made.dtype == np.uint8
    difference = np.abs(made - wanted)
    if name in GEOMETRIC:  # OpenCV blends the rim with the fill colour, Pillow does not
        assert np.median(difference) <= 1
        assert np.quantile(difference, 0.97) <= 2
    else:
        assert difference.max() == 0


def test_strongest_posterizing_keeps_no_bit() -> None:
    assert not OPERATIONS["PosterizeIncreasing"](picture(), 1.0, 1, FILL).any()


@pytest.mark.parametrize("value", [0, 7, 255])
def test_flat_pictures_are_equal_too(value: int) -> None:
    flat = np.full((5, 5, 3), value, np.uint8)
    image = Image.fromarray(flat)
    assert (ours.auto_contrast(flat) == np.asarray(timm_ops.auto_contrast(image))).all()
    assert (ours.equalize(flat) == np.asarray(timm_ops.equalize(image))).all()
    assert (ours.sharpness(flat, 1.9) == np.asarray(timm_ops.sharpness(image, 1.9))).all()


def test_two_values_are_equalized_alike() -> None:
    two = np.zeros((40, 40, 3), np.uint8)
    two[:, 1:] = 200
    assert (ours.equalize(two) == np.asarray(timm_ops.equalize(Image.fromarray(two)))).all()


def test_draws_decide_everything() -> None:
    settings = RandAugment()
    first = [rand_augment(picture(), settings, FILL, random.Random(seed)) for seed in range(20)]
    again = [rand_augment(picture(), settings, FILL, random.Random(seed)) for seed in range(20)]
    assert all((one == two).all() for one, two in zip(first, again, strict=True))
    assert len({image.tobytes() for image in first}) > 10


def test_operations_are_drawn_with_replacement_and_half_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    strengths: list[float] = []
    signs: Counter[int] = Counter()

    def recorder(name: str) -> object:
        def record(image: NDArray[np.uint8], strength: float, sign: int, fill: object) -> NDArray[np.uint8]:
            calls[name] += 1
            strengths.append(strength)
            signs[sign] += 1
            return image

        return record

    monkeypatch.setattr(ours, "OPERATIONS", {name: recorder(name) for name in OPERATIONS})
    draws, blank = random.Random(0), np.zeros((2, 2, 3), np.uint8)
    for _ in range(6000):
        rand_augment(blank, RandAugment(magnitude=9.0, magnitude_std=0.5, operations=2), FILL, draws)
    assert abs(calls.total() / 12_000 - 0.5) < 0.02
    assert max(calls.values()) / min(calls.values()) < 1.35
    assert abs(signs[1] / signs.total() - 0.5) < 0.03
    assert abs(np.mean(strengths) - 0.9) < 0.005
    assert abs(np.std(strengths) - 0.05) < 0.005
    assert max(strengths) == 1.0


def test_picture_is_left_alone() -> None:
    image = picture()
    kept = image.copy()
    for operation in OPERATIONS.values():
        operation(image, 0.9, 1, FILL)
    assert (image == kept).all()
