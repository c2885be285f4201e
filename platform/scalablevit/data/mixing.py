"""Transforms of a whole batch on the device: normalization, random erasing, mixup and CutMix."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

ERASED_AREA = (0.02, 1 / 3)
"""Least and greatest area of the erased rectangle, fraction of the image."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Least and greatest height over width of the erased rectangle."""
_ATTEMPTS = 10


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float], *, channels_last: bool = False) -> Tensor:
    """Return images scaled to 0..1, minus `mean` and divided by `std`, per channel.

    Args:
        images: uint8 (samples, height, width, 3).
        mean: of each channel, in 0..1.
        std: of each channel, in 0..1.
        channels_last: use the channels-last memory format.

    Returns:
        float32 (samples, 3, height, width).
    """
    # not made on the device itself: that copy would make the host wait for the device in every step
    scale = torch.tensor([255 * value for value in std], device="cpu").to(images.device, non_blocking=True)
    shift = torch.tensor([255 * value for value in mean], device="cpu").to(images.device, non_blocking=True)
    normalized = ((images - shift) / scale).permute(0, 3, 1, 2)
    return normalized.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def random_erasing(images: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Replace one rectangle of some images by noise of a standard normal distribution, and return the images.

    Random erasing (Zhong et al., arXiv 1708.04896) as timm's mode `pixel`. Changes `images` in place.

    Args:
        images: normalized (samples, 3, height, width).
        probability: of each image, independently of the others, 0 to 1.
        rng: source of all randomness.
    """
    height, width = images.shape[-2:]
    noise = torch.Generator(images.device).manual_seed(int(rng.integers(2**63)))
    for image in images:
        if rng.random() >= probability:
            continue
        if box := _erased_box(height, width, rng):
            top, left, tall, wide = box
            image[:, top : top + tall, left : left + wide].normal_(generator=noise)
    return images


def mix(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    mixup: float,
    cutmix: float,
    probability: float,
    switch_probability: float,
    smoothing: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Mix image i with image -1 - i of the batch, and smooth the labels.

    mixup (Zhang et al., arXiv 1710.09412) or CutMix (Yun et al., arXiv 1905.04899), one weight for the batch, as timm's
    mode `batch`. Any number of samples: the middle one of an odd batch is mixed with itself. Changes `images` in place.

    Args:
        images: float (samples, channels, height, width).
        labels: int64 (samples,), class indices.
        classes: number of classes.
        mixup: alpha of mixup's Beta distribution; 0: off.
        cutmix: alpha of CutMix's Beta distribution; 0: off.
        probability: that the batch is mixed at all, 0 to 1.
        switch_probability: of CutMix when both are on, 0 to 1.
        smoothing: probability mass that is spread over all classes, 0 to 1 (label smoothing).
        rng: source of all randomness.

    Returns:
        The images and float32 targets (samples, classes), each row summing to 1.
    """
    targets = F.one_hot(labels, classes).to(torch.float32) * (1 - smoothing) + smoothing / classes
    if not (mixup or cutmix) or rng.random() >= probability:
        return images, targets
    use_cutmix = bool(cutmix) and (not mixup or rng.random() < switch_probability)
    alpha = cutmix if use_cutmix else mixup
    own = float(rng.beta(alpha, alpha))
    if use_cutmix:
        height, width = images.shape[-2:]
        rows, columns = _cutmix_box(height, width, own, rng)
        images[:, :, rows, columns] = images.flip(0)[:, :, rows, columns]
        own = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images.lerp_(images.flip(0), 1 - own)
    return images, targets * own + targets.flip(0) * (1 - own)


def _erased_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """Return top, left, height and width in pixels; None if no attempt fits into the image."""
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if tall < height and wide < width:
            return int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1)), tall, wide
    return None


def _cutmix_box(height: int, width: int, own: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Return rows and columns of a random box with the image's aspect ratio and 1 - `own` of its area.

    Its centre is anywhere in the image, and it is clipped to the image.
    """
    side = math.sqrt(1 - own)

    def span(length: int) -> slice:
        extent, middle = int(length * side), int(rng.integers(length))
        return slice(max(middle - extent // 2, 0), min(middle + (extent + 1) // 2, length))

    return span(height), span(width)
