"""RandAugment (Cubuk et al., arXiv 1909.13719) as timm's `rand-m9-mstd0.5-inc1` applies it, on uint8 RGB arrays."""

import math
import random
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scalablevit.config.data import RandAugment

Pixels = NDArray[np.uint8]
"""uint8 (height, width, 3)."""
Color = tuple[int, int, int]
"""Red, green, blue, 0..255."""

APPLIED = 0.5
"""Probability of each drawn operation."""
_STRONGEST = 10.0
_LUMA = np.array([19595, 38470, 7471], np.int64)  # ITU-R 601 in 16 bits, Pillow's conversion to grey
_LEVELS = np.arange(256)


def rand_augment(image: Pixels, settings: RandAugment, fill: Color, rng: random.Random) -> Pixels:
    """Return an image after `settings.operations` operations, drawn with replacement, each with probability `APPLIED`.

    Args:
        image: uint8 (height, width, 3).
        settings: strength and number of operations.
        fill: RGB, 0 to 255, of pixels that move in from outside.
        rng: source of all randomness.
    """
    for operation in rng.choices(list(OPERATIONS.values()), k=settings.operations):
        if rng.random() >= APPLIED:
            continue
        strength = min(max(rng.gauss(settings.magnitude, settings.magnitude_std), 0.0), _STRONGEST) / _STRONGEST
        image = operation(image, strength, rng.choice((-1, 1)), fill)
    return image


def auto_contrast(image: Pixels) -> Pixels:
    """Stretch each channel to 0..255; constant channels do not change."""
    tables = []
    for channel in cv2.split(image):
        low, high = int(channel.min()), int(channel.max())
        scale = 255.0 / max(high - low, 1)
        tables.append(_LEVELS if high <= low else np.trunc(_LEVELS * scale - low * scale))
    return _look_up(image, np.stack(tables, axis=-1))


def equalize(image: Pixels) -> Pixels:
    """Flatten the histogram of each channel."""
    tables = []
    for channel in cv2.split(image):
        counts = np.bincount(channel.ravel(), minlength=256)
        occupied = counts[counts > 0]
        step = int(occupied[:-1].sum()) // 255
        below = np.cumsum(counts) - counts
        tables.append((below + step // 2) // step if step else _LEVELS)
    return _look_up(image, np.stack(tables, axis=-1))


def invert(image: Pixels) -> Pixels:
    """Return the negative."""
    return np.asarray(cv2.bitwise_not(image), np.uint8)


def posterize(image: Pixels, bits: int) -> Pixels:
    """Keep the `bits` (0..8) most significant bits."""
    return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Invert values of `threshold` (0..256) and more."""
    return _look_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(image: Pixels, amount: int) -> Pixels:
    """Add `amount` (0..128) to values below 128."""
    return _look_up(image, np.where(_LEVELS < 128, np.minimum(_LEVELS + amount, 255), _LEVELS))


def brightness(image: Pixels, factor: float) -> Pixels:
    """Blend with black; 1 is no change."""
    return _look_up(image, _blend(np.zeros(256), _LEVELS, factor))


def contrast(image: Pixels, factor: float) -> Pixels:
    """Blend with the mean grey; 1 is no change."""
    mean = int(_grey(image).mean() + 0.5)
    return _look_up(image, _blend(np.full(256, mean), _LEVELS, factor))


def color(image: Pixels, factor: float) -> Pixels:
    """Blend with the grey image; 1 is no change."""
    return _blend(_grey(image)[:, :, None], image, factor)


def sharpness(image: Pixels, factor: float) -> Pixels:
    """Blend with the image smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, whose border is not smoothed; 1 is no change."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
    smooth = image.copy()
    if min(image.shape[:2]) > 2:
        smooth[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel)[1:-1, 1:-1]
    return _blend(smooth, image, factor)


def shear_x(image: Pixels, factor: float, fill: Color) -> Pixels:
    """Shift each row by `factor` times its index, in pixels."""
    return _warp(image, ((1, factor, 0), (0, 1, 0)), fill)


def shear_y(image: Pixels, factor: float, fill: Color) -> Pixels:
    """Shift each column by `factor` times its index, in pixels."""
    return _warp(image, ((1, 0, 0), (factor, 1, 0)), fill)


def translate_x(image: Pixels, fraction: float, fill: Color) -> Pixels:
    """Shift by a fraction of the width."""
    return _warp(image, ((1, 0, fraction * image.shape[1]), (0, 1, 0)), fill)


def translate_y(image: Pixels, fraction: float, fill: Color) -> Pixels:
    """Shift by a fraction of the height."""
    return _warp(image, ((1, 0, 0), (0, 1, fraction * image.shape[0])), fill)


def rotate(image: Pixels, degrees: float, fill: Color) -> Pixels:
    """Rotate counter-clockwise about the centre."""
    height, width = image.shape[:2]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return _warp(image, ((cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y)), fill)


OPERATIONS: dict[str, Callable[[Pixels, float, int, Color], Pixels]] = {
    "AutoContrast": lambda image, strength, sign, fill: auto_contrast(image),
    "Equalize": lambda image, strength, sign, fill: equalize(image),
    "Invert": lambda image, strength, sign, fill: invert(image),
    "Rotate": lambda image, strength, sign, fill: rotate(image, sign * strength * 30.0, fill),
    "PosterizeIncreasing": lambda image, strength, sign, fill: posterize(image, 4 - int(strength * 4)),
    "SolarizeIncreasing": lambda image, strength, sign, fill: solarize(image, 256 - int(strength * 256)),
    "SolarizeAdd": lambda image, strength, sign, fill: solarize_add(image, int(strength * 110)),
    "ColorIncreasing": lambda image, strength, sign, fill: color(image, _enhancement(strength, sign)),
    "ContrastIncreasing": lambda image, strength, sign, fill: contrast(image, _enhancement(strength, sign)),
    "BrightnessIncreasing": lambda image, strength, sign, fill: brightness(image, _enhancement(strength, sign)),
    "SharpnessIncreasing": lambda image, strength, sign, fill: sharpness(image, _enhancement(strength, sign)),
    "ShearX": lambda image, strength, sign, fill: shear_x(image, sign * strength * 0.3, fill),
    "ShearY": lambda image, strength, sign, fill: shear_y(image, sign * strength * 0.3, fill),
    "TranslateXRel": lambda image, strength, sign, fill: translate_x(image, sign * strength * 0.45, fill),
    "TranslateYRel": lambda image, strength, sign, fill: translate_y(image, sign * strength * 0.45, fill),
}
"""By timm's names; the arguments are image, strength 0..1, sign of a symmetric change, and fill colour."""


def _enhancement(strength: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * strength * 0.9)


def _look_up(image: Pixels, table: NDArray[np.number[Any]]) -> Pixels:
    """Map values through a table (256,) or, per channel, (256, 3)."""
    return np.asarray(cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8).reshape(1, 256, -1)), np.uint8)


def _grey(image: Pixels) -> Pixels:
    return ((image @ _LUMA + 0x8000) >> 16).astype(np.uint8)


def _blend(base: NDArray[np.number[Any]], image: NDArray[np.number[Any]], factor: float) -> Pixels:
    """Return base + factor * (image - base), clipped to 0..255 and truncated."""
    start = base.astype(np.float32)
    return np.clip(start + np.float32(factor) * (image.astype(np.float32) - start), 0, 255).astype(np.uint8)


def _warp(image: Pixels, source: tuple[tuple[float, float, float], ...], fill: Color) -> Pixels:
    """Sample each pixel bilinearly at the position that the affine matrix `source` (2 x 3) maps it to.

    Coordinates are those of pixel corners. Pixels outside the image are `fill`.
    """
    matrix = np.array(source, np.float64)
    matrix[:, 2] += matrix[:, :2].sum(axis=1) * 0.5 - 0.5  # OpenCV's coordinates are those of pixel centres
    height, width = image.shape[:2]
    return np.asarray(
        cv2.warpAffine(
            image,
            matrix,
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        ),
        np.uint8,
    )
