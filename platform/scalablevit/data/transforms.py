"""Sample transforms of each task and split, from the recipe: uint8 RGB in, uint8 RGB out, labels in step."""

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
"""What albumentations hands from one method of a transform to the next, by names that each transform chooses."""

Transform: TypeAlias = A.Compose
UserTransform: TypeAlias = Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]


def train_transform(data: DataSection) -> Transform:
    """Augmentation of the training split; call it through `augment`.

    Image folders: random resized crop to `image_size`, flip, then RandAugment or colour jitter. Mask pairs:
    `ScaleSides` with a random factor, a random square crop (padded at the right and bottom with the mean colour and
    the ignored label), flip, colour jitter. COCO: `DrawnShortSide`, flip, colour jitter, with boxes and masks.
    """
    fill = fill_color(data)
    if isinstance(data, LabelledImages):
        crop = AntialiasedCrop if data.antialias else A.RandomResizedCrop
        geometry: list[A.BasicTransform] = [
            crop((data.image_size, data.image_size), scale=data.crop_scale, ratio=data.crop_ratio)
        ]
        colors: list[A.BasicTransform] = [RandAugmentation(data.rand_augment, fill)] if data.rand_augment else []
    elif isinstance(data, CocoInstances):
        geometry = [DrawnShortSide(data.train_short_sides or (data.short_side, data.short_side), data.long_side)]
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
    boxes = A.BboxParams(format="pascal_voc", label_fields=["numbers"], min_width=1, min_height=1)
    with_boxes = {"bbox_params": boxes} if isinstance(data, CocoInstances) else {}
    return A.Compose([*geometry, A.HorizontalFlip(p=data.flip), *colors], **with_boxes)


def eval_transform(data: DataSection) -> Transform:
    """Preparation of an image for evaluation and serving: `eval_transform(data)(image=image)["image"]`.

    Image folders: `MiddleOfStrip`, shorter side to `eval_resize`, centre crop of `image_size`. Mask pairs: `ScaleSides`
    without crop; masks are not passed through it, since the metric is computed at the original size. COCO likewise.
    """
    if isinstance(data, MaskPairs | CocoInstances):
        return A.Compose([ScaleSides(data.short_side, data.long_side)])
    resize = AntialiasedSide if data.antialias else A.SmallestMaxSize
    return A.Compose([MiddleOfStrip(), resize(data.eval_resize), A.CenterCrop(data.image_size, data.image_size)])


def prepare_image(stage: Stage, image: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Prepare a decoded image as evaluation does, for the stage's network.

    Args:
        stage: the recipe's stage that the network was trained by.
        image: RGB (height, width, 3).
        device: where the result is.

    Returns:
        Normalized float32 (1, 3, height, width), at the size that `eval_transform` gives.
    """
    data = stage.data
    pixels = torch.from_numpy(eval_transform(data)(image=image)["image"])[None].to(device)
    return normalize(pixels, data.mean, data.std, channels_last=stage.model.channels_last)


def augment(
    transform: Transform, seed: int, key: Key, image: NDArray[np.uint8], labels: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Apply a transform with randomness that depends on (seed, epoch, position) and on nothing else.

    One pair of generators is shared by all transforms. A seed for each (`set_random_seed`, `Compose(seed=...)`) would
    give them all the same draws, so that everything of equal probability happens together or not at all.

    Args:
        transform: of `train_transform`.
        seed: the recipe's.
        key: the sample's place in the stream.
        image: uint8 (height, width, 3).
        labels: uint8 (height, width), or None.
    """
    _seed(transform, seed, key)
    targets = {"image": image} if labels is None else {"image": image, "mask": labels}
    made = transform(**targets)
    return made["image"], made.get("mask")


def registered_transforms(data: DataSection) -> tuple[UserTransform, ...]:
    """Return the users' own transforms that a data section lists."""
    return () if isinstance(data, CocoInstances) else tuple(TRANSFORMS[name] for name in data.transforms)


def apply_registered(
    transforms: Sequence[UserTransform], seed: int, key: Key, image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Apply users' own transforms, each with a generator of (seed, epoch, position) and its place among them.

    Args:
        transforms: of `registered_transforms`.
        seed: the recipe's.
        key: the sample's place in the stream.
        image: uint8 (height, width, 3).

    Raises:
        TypeError: one returns something other than such an image of the same shape.
    """
    for number, transform in enumerate(transforms, start=1):
        made = transform(image.copy(), np.random.default_rng([seed, key.epoch, key.position, number]))
        if not isinstance(made, np.ndarray) or (made.dtype, made.shape) != (image.dtype, image.shape):
            found = f"{made.dtype} {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__
            name = f"{transform.__module__}.{transform.__qualname__}"
            raise TypeError(f"transform {name} makes {found} of uint8 {image.shape}; it must keep type and shape")
        image = made
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
    """`augment` with boxes, their labels and masks in step; boxes that end up below 1 pixel are left out of all three.

    Args:
        transform: of `train_transform` for COCO data.
        seed: the recipe's.
        key: the sample's place in the stream.
        image: uint8 (height, width, 3).
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        labels: (n,).
        masks: uint8 (n, height, width), or None.
    """
    _seed(transform, seed, key)
    targets = {} if masks is None or not len(masks) else {"masks": masks}
    made = transform(image=image, bboxes=boxes, numbers=np.arange(len(boxes)), **targets)
    left = np.asarray(made["numbers"], np.int64)  # albumentations takes boxes out, but not their masks
    moved = np.asarray(made["bboxes"], np.float32).reshape(-1, 4)
    if masks is not None:
        masks = np.asarray(made["masks"])[left] if targets else np.zeros((0, *made["image"].shape[:2]), np.uint8)
    return made["image"], moved, labels[left], masks


def _seed(transform: Transform, seed: int, key: Key) -> None:
    generator = np.random.default_rng([seed, key.epoch, key.position])
    transform.set_random_state(generator, random.Random(int(generator.integers(2**63))))


def fill_color(data: DataSection) -> Color:
    """The mean colour in 0..255, which normalizing turns into about zero."""
    return mean_color(data.mean)


def scaled_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Height and width after scaling by min(short_side / min(h, w), long_side / max(h, w)), rounded half up."""
    factor = min(short_side / min(height, width), long_side / max(height, width))
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def resize_antialiased(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to (height, width) by the antialiased bilinear filter of torchvision and Pillow, within 1 of 255.

    OpenCV has no such filter, and its averaging over areas takes three times as long.
    """
    batch = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # channels last: the fast kernel
    return F.interpolate(batch, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)[0].numpy()


class AntialiasedCrop(A.RandomResizedCrop):  # type: ignore[misc]  # albumentations is untyped
    """albumentations' random resized crop, shrunk as torchvision shrinks."""

    def apply(self, img: NDArray[np.uint8], crop_coords: tuple[int, int, int, int], **params: Any) -> NDArray[np.uint8]:
        """Cut and resize an image."""
        left, top, right, bottom = crop_coords
        return resize_antialiased(img[top:bottom, left:right], self.size)


class AntialiasedSide(A.SmallestMaxSize):  # type: ignore[misc]  # albumentations is untyped
    """albumentations' resizing of the shorter side, shrunk as torchvision shrinks."""

    def apply(self, img: NDArray[np.uint8], scale: float, **params: Any) -> NDArray[np.uint8]:
        """Resize an image."""
        height, width = (max(1, round(side * scale)) for side in img.shape[:2])
        return resize_antialiased(img, (height, width))


class ScaleSides(A.DualTransform):  # type: ignore[misc]  # albumentations is untyped
    """Scale the short side to a length, the long side to at most another, keeping the aspect ratio.

    Images are averaged over areas when they shrink; labels take the nearest pixel.

    Args:
        short_side: pixels of the short side.
        long_side: most pixels of the long side.
        scale_range: bounds of a random factor on both.
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
        """Boxes come as fractions of the image, which scaling leaves as they are."""
        return bboxes


class MiddleOfStrip(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """Cut an image that is much longer than wide to its middle, which is all that a centre crop keeps.

    Scaling the short side of a file of 1 x 60 000 pixels to 256 would take 12 GB.
    """

    LONGEST = 16
    """Short sides."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p=p)

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Cut both ends alike."""
        height, width = img.shape[:2]
        longest = self.LONGEST * min(height, width)
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        return img[top : height - top, left : width - left]


class DrawnShortSide(ScaleSides):
    """Scale the short side to a length drawn for each image, the long side to at most another.

    Args:
        short_sides: least and most pixels of the short side, each whole number alike.
        long_side: most pixels of the long side.
    """

    def __init__(self, short_sides: tuple[int, int], long_side: int, p: float = 1.0) -> None:
        super().__init__(short_sides[1], long_side, p=p)
        self.short_sides = short_sides

    def get_params_dependent_on_data(self, params: TransformParams, data: TransformParams) -> TransformParams:
        """Draw the short side."""
        height, width = params["shape"][:2]
        return {"size": scaled_size(height, width, self.py_random.randint(*self.short_sides), self.long_side)}


class RandAugmentation(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is untyped
    """`rand_augment` as a transform.

    Args:
        settings: strength and number of operations.
        fill: RGB of pixels that move in from outside.
    """

    def __init__(self, settings: RandAugment, fill: Color, p: float = 1.0) -> None:
        super().__init__(p=p)
        self.settings = settings
        self.fill = fill

    def apply(self, img: NDArray[np.uint8], **params: Any) -> NDArray[np.uint8]:
        """Augment an image."""
        return rand_augment(img, self.settings, self.fill, self.py_random)
