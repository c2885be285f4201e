"""The recipe's data sections: one for each kind of source."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from scalablevit.config.section import NOT_HASHED, PlainValues, PositiveInt, Probability, Section, SectionError, Triple
from scalablevit.config.transforms import refuse_unknown

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
SplitName = Literal["train", "val"]
SPLITS: tuple[SplitName, ...] = ("train", "val")
MAX_PIXELS = 178_956_970
"""Most pixels of an image: above it Pillow, too, takes a file for a decompression bomb."""
Side = Annotated[int, Field(ge=16, le=4096)]

Transforms = Annotated[tuple[str, ...], Field(max_length=16)]


class Split(Section):
    """Where one split is, relative to `data.root`."""

    images: str
    """Folder of images (`image_folder`: one folder per class; `tar_shards`: of shards and their index)."""
    masks: str | None = None
    """Folder of masks (PNG, or TIFF or BMP), same relative names as the images (`mask_pairs`)."""
    annotations: str | None = None
    """File of instances in COCO's json format, whose `file_name`s are relative to `images` (`coco`)."""

    @field_validator("images", "masks", "annotations")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path is not None and (Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path):
            raise ValueError("must be a path inside data.root, without '..'")
        return path


class Shapes(Section):
    """The built-in demo data set, written to `data.root` before training when it is not there yet."""

    train_images: PositiveInt
    """Images of the training split."""
    val_images: PositiveInt
    """Images of the validation split."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 96
    """Side of the square images, pixels."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides every pixel."""


class RandAugment(Section):
    """RandAugment with operations that grow with the magnitude (timm's `rand-m9-mstd0.5-inc1`)."""

    magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """Mean strength, of 10."""
    magnitude_std: Annotated[float, Field(ge=0, le=10)] = 0.5
    """Standard deviation of the strength of each operation."""
    operations: PositiveInt = 2
    """Operations sampled per image, each applied with probability 0.5."""


class _Images(Section):
    """What all sources share."""

    root: str
    """Folder of the data set; relative paths resolve against the platform's root (`--root`), ~ is one's home. Addresses
    such as s3://... are not read yet."""
    train: Split
    """Training split."""
    val: Split
    """Validation split."""
    shapes: Shapes | None = None
    """Make the built-in demo data under `root` if it is not there."""
    mean: Triple = IMAGENET_MEAN
    """Subtracted per RGB channel after scaling to 0..1 (ImageNet's values)."""
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3, max_length=3)] = IMAGENET_STD
    """Divides per RGB channel (ImageNet's values)."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    color_jitter: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of brightness, contrast and saturation jitter; 0: off. RandAugment replaces it, as in timm."""
    max_bad_fraction: Probability = 0.01
    """Largest fraction of samples that cannot be decoded. Training stops above this fraction of the samples seen, or of
    1000 while fewer are seen, also of a validation split in training; a split that is checked before training, or that
    `evaluate` or `promote` reads, is refused above this fraction of its samples.
    With `coco`, also the largest fraction of objects that lack a mask where masks are read (10 objects may lack one in
    any case, but never all of them), and of annotated file names that are ambiguous."""
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = MAX_PIXELS
    """Images with more pixels are refused before decoding (decompression bombs)."""
    max_shared_fraction: Annotated[Probability, Field(json_schema_extra=NOT_HASHED)] = 0.01
    """Largest fraction of validation images that may also be training images (byte-identical); more is an error, also
    where `evaluate` or `promote` reads other data than that of the training."""
    on_missing_class: Annotated[Literal["warn", "stop"], Field(json_schema_extra=NOT_HASHED)] = "warn"
    """Whether a class that a split has nothing of is a warning or an error. It is always an error where there are three
    classes or fewer, and where the training masks or image folders hold at most one class."""

    @model_serializer(mode="wrap")
    def _drop_empty_transforms(self, serialize: SerializerFunctionWrapHandler) -> PlainValues:
        """Drop an empty `transforms`, so that such sections are stored, sent and hashed as before the key existed."""
        values: PlainValues = serialize(self)
        if not values.get("transforms"):
            values.pop("transforms", None)
        return values

    @field_validator("root")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path.startswith("~") and Path(path).parts[0] != "~":
            raise ValueError("must be a path; of home folders only one's own (~/...) is known on every node")
        if (scheme := path.partition("://")[0]) != path:
            raise ValueError(f"{scheme}:// is not read yet; copy it to a folder that every node sees, and name that")
        return path


def default_resize(image_size: int) -> int:
    """Return the default of `data.eval_resize` for a side of the evaluation crop, both in pixels."""
    return min(round(image_size * 256 / 224), 4096)


def _before_crop(data: PlainValues) -> int:
    return default_resize(int(data["image_size"]))


class LabelledImages(_Images):
    """Keys of all sources whose images are cropped to one size, as for classification.

    The section of a user's own source is a subclass of this class, or of the section whose kind of images it has.
    """

    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    """Side of the square training and evaluation crop, pixels."""
    eval_resize: Annotated[int, Field(ge=16, le=4096)] = Field(default_factory=_before_crop)
    """Shorter side before the centre crop in evaluation, pixels; by default 8/7 of image_size (256 for 224)."""
    crop_scale: tuple[Probability, Probability] = (0.08, 1.0)
    """Area of the random resized crop as a fraction of the image, [min, max]."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    """Aspect ratio (width / height) of the random resized crop, [min, max]."""
    antialias: bool = True
    """Shrink images by averaging what a pixel covers, as torchvision does; false: interpolate between the nearest two
    pixels each way, which takes less time and changes the data when images shrink by more than about 1.5."""
    rand_augment: RandAugment | None = None
    """RandAugment; null: off."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of an image is replaced by noise, on the batch."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's Beta distribution; 0: off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix's Beta distribution; 0: off."""
    mix_prob: Probability = 1.0
    """Probability that a batch is mixed at all."""
    mixup_switch_prob: Probability = 0.5
    """Probability of CutMix when both are on."""
    repeated_augmentation: PositiveInt = 1
    """Times a distinct image occurs in an epoch, whose length stays the number of images."""
    transforms: Transforms = ()
    """Users' own, by the names that `register_transform` gave them: applied to training images in this order, after all
    that is above and before a batch is made."""

    @field_validator("transforms")
    @classmethod
    def _are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        refuse_unknown(names)
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eval_resize < self.image_size:
            raise ValueError(f"eval_resize ({self.eval_resize}) must be at least image_size ({self.image_size})")
        if self.crop_scale[0] <= 0 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must be [min, max] with 0 < min <= max")
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} must be [min, max] with min <= max")
        return self

    @property
    def training_pixels(self) -> int:
        """Return the pixels of a training image."""
        return self.image_size**2


class ImageFolder(LabelledImages):
    """One folder of images per class."""

    source: Literal["image_folder"]
    """One folder of images per class."""


class TarShards(LabelledImages):
    """Tar files in WebDataset's layout with an index, as `scalablevit pack` writes them."""

    source: Literal["tar_shards"]
    """Tar files with an index."""


class MaskPairs(_Images):
    """Images and masks of class ids under the same relative names (the ADE20K layout)."""

    source: Literal["mask_pairs"]
    """Images and masks under the same names."""
    classes: str | list[str]
    """Class names in id order, or a file inside `root` with one a line."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Mask value whose pixels take no part in loss or metric; those of 255 never do."""
    reduce_zero_label: bool = False
    """ADE20K: pixels of mask value 0 are ignored (label 255), and values 1..K become the classes 0..K-1."""
    short_side: Annotated[int, Field(ge=16, le=16_384)] = 512
    """Images are scaled until the short side has these pixels, or the long side `long_side`."""
    long_side: Annotated[int, Field(ge=16, le=16_384)] = 2048
    """At most this many pixels on the long side."""
    crop_size: Annotated[int, Field(ge=16, le=16_384)] = 512
    """Side of the random training crop, pixels. Smaller images are padded at the right and bottom with `mean`, their
    masks with 255."""
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """Random factor on `short_side` and `long_side` in training, [min, max]."""
    transforms: Transforms = ()
    """Users' own, by the names that `register_transform` gave them: applied to training images in this order, after all
    that is above; masks stay as they are."""

    @field_validator("transforms")
    @classmethod
    def _are_registered(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        refuse_unknown(names)
        return names

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(split.masks is None for split in (self.train, self.val)):
            raise SectionError(
                "train.masks and val.masks are needed by the mask_pairs source",
                "add the folders, as in train: {images: images/train, masks: annotations/train}",
            )
        if self.long_side < self.short_side:
            raise ValueError(f"long_side ({self.long_side}) must be at least short_side ({self.short_side})")
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range {list(self.scale_range)} must be [min, max] with min <= max")
        return self

    @property
    def training_pixels(self) -> int:
        """Return the pixels of a training image."""
        return self.crop_size**2


class CocoInstances(_Images):
    """Images with boxes and instance masks in COCO's json format."""

    source: Literal["coco"]
    """COCO's json format."""
    short_side: Side = 800
    """Images are scaled until the short side has these pixels, or the long side `long_side`."""
    long_side: Annotated[int, Field(ge=16, le=8192)] = 1333
    """At most this many pixels on the long side."""
    train_short_sides: tuple[Side, Side] | None = None
    """Short side in training, sampled per image, [min, max], both included; null: `short_side`."""
    group_by_aspect: bool = True
    """Make the batch of a training step of landscape or of portrait images only, so that little is padded."""
    instance_masks: bool = True
    """Read instance masks (Mask R-CNN needs them); false saves time where only boxes are used."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(split.annotations is None for split in (self.train, self.val)):
            raise SectionError(
                "train.annotations and val.annotations are needed by the coco source",
                "add the files, as in train: {images: train2017, annotations: annotations/train.json}",
            )
        if self.long_side < self.short_side:
            raise ValueError(f"long_side ({self.long_side}) must be at least short_side ({self.short_side})")
        if self.train_short_sides and self.train_short_sides[0] > self.train_short_sides[1]:
            raise ValueError(f"train_short_sides {list(self.train_short_sides)} must be [min, max] with min <= max")
        if self.train_short_sides and self.train_short_sides[1] > self.long_side:
            raise ValueError(f"train_short_sides {list(self.train_short_sides)} end above long_side ({self.long_side})")
        return self

    @property
    def training_pixels(self) -> int:
        """Return an upper bound on the pixels of a training image, before padding."""
        largest = self.train_short_sides[1] if self.train_short_sides else 0
        return max(self.short_side, largest) * self.long_side


DataSection = LabelledImages | MaskPairs | CocoInstances
"""Every data section, also one of users' own."""
Data = Annotated[ImageFolder | TarShards | MaskPairs | CocoInstances, Field(discriminator="source")]
