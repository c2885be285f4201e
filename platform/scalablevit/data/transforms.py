"""Transforms of single samples, by data section and split: uint8 RGB in, uint8 RGB out, labels transformed alike."""

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from scalablevit.config.data import CocoInstances, DataSection, LabelledImages, MaskPairs, RandAugment
from scalablevit.config.recipe import Stage
from scalablevit.config.transforms import TRANSFORMS
from scalablevit.data.decoding import mean_color
from scalablevit.data.labels import IGNORE
from scalablevit.data.mixing import normalize
from scalablevit.data.rand_augment import Color, rand_augment
from scalablevit.data.sampler import Key

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else each import asks the internet for a newer version
import albumentations as A

TransformParams: TypeAlias = dict[str, Any]
"""Values that albumentations passes from one method of a transform to the next, by names that the transform chooses."""

Transform: TypeAlias = A.Compose
UserTransform: TypeAlias = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]
"""A user's own transform: takes an RGB image uint8 (height, width, 3), and returns one of the same shape."""


def train_transform(data: DataSection) -> Transform:
    """Return the augmentation of the training split; apply it by `augment` or `augment_instances`.

    Labelled images: random resized crop to `image_size`, flip, then RandAugment or colour jitter. Mask pairs:
    `ScaleSides` with a random factor, a random square crop (padded at the right and bottom with the mean colour and
    the ignored label), flip, colour jitter. COCO: `RandomShortSide`, flip, colour jitter, with boxes and masks.
    """
    fill = fill_color(data)
    if isinstance(data, LabelledImages):
        crop = AntialiasedCrop if data.antialias else A.RandomResizedCrop
        geometry: list[A.BasicTransform] = [
            crop((data.image_size, data.image_size), scale=data.crop_scale, ratio=data.crop_ratio)
        ]
        colors: list[A.BasicTransform] = [RandAugmentation(data.rand_augment, fill)] if data.rand_augment else []
    elif isinstance(data, CocoInstances):
        geometry = [RandomShortSide(data.train_short_sides or (data.short_side, data.short_side), data.long_side)]
        colors = []
    else:
        geometry = [
            ScaleSides(data.short_side, data.long_side, data.scale_range),
            A.RandomCrop(
                height=data.crop_size,
                width=data.crop_size,
                pad_if_needed=True,
                pad_position="top_left",
                border_mode=cv2.BORDER_CONSTANT,
                fill=fill,
                fill_mask=IGNORE,
            ),
        ]
        colors = []
    if data.color_jitter and not colors:
        strength = data.color_jitter
        colors = [A.ColorJitter(brightness=strength, contrast=strength, saturation=strength, hue=0.0, p=1.0)]
    steps = [*geometry, A.HorizontalFlip(p=data.flip), *colors]
    if isinstance(data, LabelledImages):
        return ImageCompose(steps)
    boxes = A.BboxParams(format="pascal_voc", label_fields=["numbers"], min_width=1, min_height=1)
    return A.Compose(steps, **({"bbox_params": boxes} if isinstance(data, CocoInstances) else {}))


def eval_transform(data: DataSection) -> Transform:
    """Return the transform of evaluation and serving; apply it as `eval_transform(data)(image=image)["image"]`.

    Labelled images: `MiddleOfStrip`, shorter side to `eval_resize`, centre crop of `image_size`. Mask pairs:
    `ScaleSides` without crop; masks are not transformed, since the metric is computed at the original size. COCO
    likewise.
    """
    if isinstance(data, MaskPairs | CocoInstances):
        return A.Compose([ScaleSides(data.short_side, data.long_side)])
    resize = AntialiasedSide if data.antialias else A.SmallestMaxSize
    return ImageCompose([MiddleOfStrip(), resize(data.eval_resize), A.CenterCrop(data.image_size, data.image_size)])


def prepare_image(stage: Stage, image: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return a decoded image as the network's input, transformed as in evaluation.

    Args:
        stage: the recipe's stage that the network was trained by.
        image: uint8 (height, width, 3), RGB.
        device: of the result.

    Returns:
        Normalized float32 (1, 3, h, w), at the size that `eval_transform` gives.
    """
    data = stage.data
    pixels = torch.from_numpy(eval_transform(data)(image=image)["image"])[None].to(device)
    return normalize(pixels, data.mean, data.std, channels_last=stage.model.channels_last)


def augment(
    transform: Transform, seed: int, key: Key, image: NDArray[np.uint8], labels: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return image and labels after a transform whose randomness depends on (seed, epoch, position) alone.

    One pair of generators is shared by all transforms. A seed for each (`set_random_seed`, `Compose(seed=...)`) would
    give them all the same draws, so that everything of equal probability happens together or not at all.

    Args:
        transform: of `train_transform`.
        seed: the recipe's.
        key: of the sample.
        image: uint8 (height, width, 3).
        labels: uint8 (height, width), or None.
    """
    _seed(transform, seed, key)
    targets = {"image": image} if labels is None else {"image": image, "mask": labels}
    augmented = transform(**targets)
    return augmented["image"], augmented.get("mask")


def registered_transforms(data: DataSection) -> tuple[UserTransform, ...]:
    """Return the users' own transforms that `data.transforms` lists; COCO has none."""
    return () if isinstance(data, CocoInstances) else tuple(TRANSFORMS[name] for name in data.transforms)


def apply_registered(
    transforms: Sequence[UserTransform], seed: int, key: Key, image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return an image after users' own transforms, each with a generator of (seed, epoch, position, its number from 1).

    Args:
        transforms: of `registered_transforms`.
        seed: the recipe's.
        key: of the sample.
        image: uint8 (height, width, 3).

    Raises:
        TypeError: a transform returns something other than such an image of the same shape.
    """
    for number, transform in enumerate(transforms, start=1):
        result = transform(image.copy(), np.random.default_rng([seed, key.epoch, key.position, number]))
        if not isinstance(result, np.ndarray) or (result.dtype, result.shape) != (image.dtype, image.shape):
            actual = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            name = f"{transform.__module__}.{transform.__qualname__}"
            raise TypeError(f"transform {name} makes {actual} of uint8 {image.shape}; it must keep type and shape")
        image = result
    return image


def augment_instances(
    transform: Transform,
    seed: int,
    key: Key,
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    masks: NDArray[np.uint8] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64], NDArray[np.uint8] | None]:
    """Return image, boxes, labels and masks after a transform, with the randomness of `augment`.

    Objects whose box becomes less than 1 pixel wide or high are dropped.

    Args:
        transform: of `train_transform` for COCO data.
        seed: the recipe's.
        key: of the sample.
        image: uint8 (height, width, 3).
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        labels: (n,) class indices.
        masks: uint8 (n, height, width), or None.
    """
    _seed(transform, seed, key)
    targets = {} if masks is None or not len(masks) else {"masks": masks}
    augmented = transform(image=image, bboxes=boxes, numbers=np.arange(len(boxes)), **targets)
    kept = np.asarray(augmented["numbers"], np.int64)  # albumentations drops boxes, but not their masks
    boxes = np.asarray(augmented["bboxes"], np.float32).reshape(-1, 4)
    if masks is not None:
        masks = (
            np.asarray(augmented["masks"])[kept] if targets else np.zeros((0, *augmented["image"].shape[:2]), np.uint8)
        )
    return augmented["image"], boxes, labels[kept], masks


def _seed(transform: Transform, seed: int, key: Key) -> None:
    generator = np.random.default_rng([seed, key.epoch, key.position])
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))


def fill_color(data: DataSection) -> Color:
    """Return the mean colour in 0..255, which normalization makes about zero."""
    return mean_color(data.mean)


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return height and width after scaling by min(short_side / min(h, w), long_side / max(h, w)), rounded half up.

    All are in pixels; a side has at least 1.
    """
    factor = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_antialiased(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image (height, width, 3) resized by the antialiased bilinear filter of torchvision and Pillow.

    Values differ from theirs by at most 1 of 255. OpenCV has no such filter, and its averaging over areas takes three
    times as long.

    Args:
        image: uint8 (height, width, 3).
        size: height and width of the result, pixels.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # channels last: the fast kernel
    return F.interpolate(batch, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)[0].numpy()


class ImageCompose(A.Compose):  # type: ignore[misc]  # albumentations is untyped
    """albumentations' `Compose` without its checks and copies of arguments, which take as long as half a resize.

    Draws and pixels are those of `Compose`: each transform draws and applies by its own methods.
    """

    def __call__(self, *, image: NDArray[np.uint8], **others: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        """Return {"image": image} after all transforms; with other targets what `Compose` returns.

        Args:
            image: uint8 (height, width, 3).
            others: further targets by name, such as `mask`.
        """
        if others:
            return dict(super().__call__(image=image, **others))
        self.py_random.random()  # `Compose` draws whether to apply itself at all, and its probability is 1
        for transform in self.transforms:
            if transform.should_apply():
                targets = {"image": image}
                params = transform.update_transform_params(params=transform.get_params(), data=targets)
                params |= transform.get_params_dependent_on_data(params=params, data=targets)
                image = np.ascontiguousarray(transform.apply(image, **params))
        return {"image": image}


class AntialiasedCrop(A.RandomResizedCrop):  # type: ignore[misc]  # albumentations is untyped
    """albumentations' random resized crop, resized by `resize_antialiased`."""

    def apply(self, img: NDArray[np.uint8], crop_coords: tuple[int, int, int, int], **params: Any) -> NDArray[np.uint8]:
        """Crop and resize an image (height, width, 3)."""
        left, top, right, bottom = crop_coords
        return resize_antialiased(img[top:bottom, left:right], self.size)


class AntialiasedSide(A.SmallestMaxSize):  # type: ignore[misc]  # albumentations is untyped
    """albumentations' resizing by the shorter side, with `resize_antialiased`."""

    def apply(self, img: NDArray[np.uint8], scale: float, **params: Any) -> NDArray[np.uint8]:
        """Resize an image (height, width, 3) by a factor."""
        height, width = (max(1, round(side * scale)) for side in img.shape[:2])
        return resize_antialiased(img, (height, width))


class ScaleSides(A.DualTransform):  # type: ignore[misc]  # albumentations is untyped
    """Scales the short side to a length, the long side to at most another, keeping the aspect ratio.

    Images are averaged over areas when they shrink, else bilinear; labels take the nearest pixel.

    Args:
        short_side: pixels of the short side.
        long_side: most pixels of the long side.
        scale_range: bounds of a random factor on both.
        p: albumentations' probability of the transform.
    """

    def __init__(
        self, short_side: int, long_side: int, scale_range: tuple[float, float] = (1.0, 1.0), p: float = 1.0
    ) -> None:
        super().__init__(p=p)
        self.short_side = short_side
        self.long_side = long_side
        self.scale_range = scale_range

    def get_params_dependent_on_data(self, params: TransformParams, data: TransformParams) -> TransformParams:
        """Draw the factor."""
        factor = self.py_random.uniform(*self.scale_range)
        height, width = params["shape"][:2]
        return {"size": scaled_size(height, width, int(self.short_side * factor), int(self.long_side * factor))}

    def apply(self, img: NDArray[np.uint8], size: tuple[int, int], **params: Any) -> NDArray[np.uint8]:
        """Resize an image to (height, width)."""
        shrinks = size[0] < img.shape[0]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(img, size[::-1], interpolation=interpolation), np.uint8)

    def apply_to_mask(self, mask: NDArray[np.uint8], size: tuple[int, int], **params: Any) -> NDArray[np.uint8]:
        """Resize labels to (height, width)."""
        # INTER_NEAREST takes the upper left of the pixels covered: a shift against the image by up to half of them.
        return np.asarray(cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)

    def apply_to_bboxes(self, bboxes: NDArray[np.float32], **params: Any) -> NDArray[np.float32]:
        """Return boxes unchanged: albumentations passes them as fractions of the image."""
        return bboxes


class MiddleOfStrip(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Crops an image that is much longer than wide to its middle, of which a centre crop keeps less anyway.

    Scaling the short side of a file of 1 x 60 000 pixels to 256 would take 12 GB.

    Args:
        p: albumentations' probability of the transform.
    """

    LONGEST = 16
    """Longest side that is kept, in short sides."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Crop both ends of an image (height, width, 3) equally."""
        height, width = img.shape[:2]
        longest = self.LONGEST * min(height, width)
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        return img[top : height - top, left : width - left]


class RandomShortSide(ScaleSides):
    """Scales the short side to a random length for each image, the long side to at most another.

    Args:
        short_sides: least and most pixels of the short side; each whole number between is equally probable.
        long_side: most pixels of the long side.
        p: albumentations' probability of the transform.
    """

    def __init__(self, short_sides: tuple[int, int], long_side: int, p: float = 1.0) -> None:
        super().__init__(short_sides[1], long_side, p=p)
        self.short_sides = short_sides

    def get_params_dependent_on_data(self, params: TransformParams, data: TransformParams) -> TransformParams:
        """Draw the length of the short side."""
        height, width = params["shape"][:2]
        return {"size": scaled_size(height, width, self.py_random.randint(*self.short_sides), self.long_side)}


class RandAugmentation(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """`rand_augment` as an albumentations transform.

    Args:
        settings: strength and number of operations.
        fill: RGB, 0 to 255, of pixels that move in from outside.
        p: albumentations' probability of the transform.
    """

    def __init__(self, settings: RandAugment, fill: Color, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.settings = settings
        self.fill = fill

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Augment an image (height, width, 3)."""
        return rand_augment(img, self.settings, self.fill, self.py_random)
