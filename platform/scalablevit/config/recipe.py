"""The recipe: everything that decides what a stage trains, as frozen, strict sections."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=10**12)]
Triple = tuple[float, float, float]
OptionValue = bool | int | float | str | list[int | None] | list[str]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

NOT_HASHED = {"hashed": False}


class Section(BaseModel):
    """A part of the recipe: unknown keys, wrong types, infinities and later changes are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Split(Section):
    """Where one split lies, relative to `data.root`."""

    images: str
    """Folder of images (for `image_folder`: one folder per class)."""
    masks: str | None = None
    """Folder of PNG masks, same relative names as the images (`mask_pairs`)."""

    @field_validator("images", "masks")
    @classmethod
    def _stays_inside(cls, path: str | None) -> str | None:
        if path is not None and (Path(path).is_absolute() or ".." in Path(path).parts):
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
    """Operations drawn for an image, each applied with probability 0.5."""


class _Images(Section):
    """What all sources share."""

    root: str
    """Folder of the data set; relative paths resolve against the platform's root (`--root`)."""
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
    """Training stops when more than this fraction of the samples seen could not be decoded."""
    max_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 178_956_970
    """Images with more pixels are refused before decoding (decompression bombs)."""


class ImageFolder(_Images):
    """One folder of images per class."""

    source: Literal["image_folder"]
    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    """Side of the square training and evaluation crop, pixels."""
    eval_resize: Annotated[int, Field(ge=16, le=4096)] = 256
    """Shorter side before the centre crop in evaluation, pixels."""
    crop_scale: tuple[Probability, Probability] = (0.08, 1.0)
    """Area of the random resized crop, fraction of the image."""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.75, 4 / 3)
    """Aspect ratio of the random resized crop."""
    rand_augment: RandAugment | None = None
    """RandAugment; null: off."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of an image is replaced by noise, on the batch."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup's Beta distribution; 0: off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of CutMix's Beta distribution; 0: off."""
    mix_probability: Probability = 1.0
    """Probability that a batch is mixed at all."""
    mix_switch_probability: Probability = 0.5
    """Probability of CutMix when both are on."""
    repeats: PositiveInt = 1
    """Repeated augmentation: times a distinct image occurs in an epoch, whose length stays the number of images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.eval_resize < self.image_size:
            raise ValueError(f"eval_resize ({self.eval_resize}) must be at least image_size ({self.image_size})")
        if self.crop_scale[0] <= 0 or self.crop_scale[0] > self.crop_scale[1]:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must rise and start above 0")
        if self.crop_ratio[0] > self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {list(self.crop_ratio)} must rise")
        return self


class MaskPairs(_Images):
    """Images and PNG masks of class ids under the same relative names (the ADE20K layout)."""

    source: Literal["mask_pairs"]
    classes: str | list[str]
    """Class names in id order, or a file inside `root` with one a line."""
    ignore_index: Annotated[int, Field(ge=0, le=255)] = 255
    """Mask value that takes no part in loss or metric."""
    reduce_zero_label: bool = False
    """ADE20K: 0 becomes the ignore index and ids 1..K become 0..K-1."""
    short_side: Annotated[int, Field(ge=16)] = 512
    """Images are scaled until the short side has these pixels, or the long side `long_side`."""
    long_side: Annotated[int, Field(ge=16)] = 2048
    """At most this many pixels on the long side."""
    crop_size: Annotated[int, Field(ge=16)] = 512
    """Side of the random training crop, pixels; smaller images are padded with the ignore index."""
    scale_range: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """Random factor on `short_side` and `long_side` in training."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(split.masks is None for split in (self.train, self.val)):
            raise ValueError("train.masks and val.masks are needed by the mask_pairs source")
        if self.long_side < self.short_side:
            raise ValueError(f"long_side ({self.long_side}) must be at least short_side ({self.short_side})")
        if self.scale_range[0] > self.scale_range[1]:
            raise ValueError(f"scale_range {list(self.scale_range)} must rise")
        return self


Data = Annotated[ImageFolder | MaskPairs, Field(discriminator="source")]


class Model(Section):
    """The backbone."""

    name: str
    """A ScalableViT or any timm architecture (dense tasks: with maps at strides 4, 8, 16, 32)."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth, rising linearly to this rate; null: the architecture's own."""
    init: str | None = None
    """null (random), a .safetensors or .pth file, `timm:<tag>`, `models:/<name>@<alias>` or `stage:<name>`."""
    options: dict[str, OptionValue] = {}
    """Further constructor arguments, e.g. `wide_value`, `local_interaction`, `window` of ScalableViT."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    channels_last: bool = False
    """Keep convolution tensors in NHWC memory."""


class Classification(Section):
    """Image classification."""

    kind: Literal["classification"]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Mass spread over all classes."""


class Sliding(Section):
    """Sliding-window inference: overlapping windows, logits averaged."""

    window: Annotated[int, Field(ge=16)]
    """Side of the window, pixels."""
    stride: Annotated[int, Field(ge=1)]
    """Step between windows, pixels."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stride > self.window:
            raise ValueError(f"stride ({self.stride}) must be at most window ({self.window}), or pixels are left out")
        return self


class TestTimeAugmentation(Section):
    """Predictions averaged over scales and mirror images."""

    __test__ = False

    scales: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """Factors on the evaluation size."""
    flip: bool = True
    """Also the horizontal mirror image of each."""


class Segmentation(Section):
    """Semantic segmentation through MMSegmentation's heads."""

    kind: Literal["segmentation"]
    head: Literal["semantic_fpn", "upernet"]
    neck_channels: PositiveInt = 256
    """Semantic FPN: channels of the feature pyramid."""
    head_channels: PositiveInt | None = None
    """Channels of the head; null: 128 for Semantic FPN, 512 for UperNet."""
    auxiliary_loss_weight: Annotated[float, Field(ge=0)] = 0.4
    """UperNet: weight of the auxiliary FCN head on the stride-16 map; 0: no such head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout before the classifying convolution."""
    sliding: Sliding | None = None
    """Sliding-window evaluation; null: whole images."""
    test_time_augmentation: TestTimeAugmentation | None = None
    """Multi-scale and flip evaluation by `evaluate`; null: off."""


Task = Annotated[Classification | Segmentation, Field(discriminator="kind")]


class Schedule(Section):
    """Learning rate by step: linear warm-up, then the curve."""

    kind: Literal["cosine", "multistep", "polynomial", "constant"] = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Length of the linear warm-up in epochs; not together with `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Length of the linear warm-up in steps."""
    warmup_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at step 0 of a warm-up."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end (cosine, polynomial)."""
    power: Annotated[float, Field(gt=0)] = 0.9
    """Exponent of the polynomial."""
    decay_epochs: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Multi-step: epochs after which the rate is multiplied by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Multi-step factor."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError("give warmup_epochs or warmup_steps, not both")
        if (self.kind == "multistep") != bool(self.decay_epochs):
            raise ValueError("decay_epochs belong to, and are needed by, kind: multistep")
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise ValueError(f"decay_epochs {list(self.decay_epochs)} must rise")
        return self


class Optimizer(Section):
    """The optimizer and its learning rate."""

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)]
    """Peak learning rate, for the global batch as given (never rescaled behind your back)."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the gradient's moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's denominator term."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum (Nesterov)."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Not applied to norms, biases and the position-encoding generator."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate for each layer further from the head; null: off."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global norm of the gradient; null: no clipping."""
    schedule: Schedule = Schedule()


class Interval(Section):
    """Every so many epochs or steps."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: PositiveInt | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class StopAfter(Section):
    """Early stopping."""

    evaluations_without_gain: PositiveInt
    """Evaluations in a row whose metric is not better than the best so far."""


class Keep(Section):
    """How many checkpoints stay."""

    last: PositiveInt = 2
    """Newest ones."""
    best: Annotated[int, Field(ge=0)] = 1
    """Best ones by the task's metric."""


class Training(Section):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length in passes over the training split; or `steps`."""
    steps: PositiveInt | None = None
    """Length in optimizer steps; or `epochs`."""
    global_batch: PositiveInt
    """Samples of one optimizer step, over all workers and accumulation."""
    accumulation: PositiveInt = 1
    """Micro-batches of a step on each worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights and optimizer stay float32."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides data order, augmentation, mixing, initialisation and drop path."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential moving average of the weights, which is then evaluated and registered; null: off."""
    compile: bool = False
    """torch.compile of the model."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms (CUDA); operations that have none are named at the end.
    Attention then takes its plain form, which needs more memory."""
    evaluate_every: Interval = Interval(epochs=1.0)
    """Evaluation on the validation split; the last step is always evaluated."""
    stop_after: StopAfter | None = None
    """Early stopping; null: off."""
    checkpoint_every: Annotated[Interval | None, Field(json_schema_extra=NOT_HASHED)] = None
    """Checkpoints besides those after each evaluation; null: none."""
    log_every_steps: Annotated[int, Field(ge=1, json_schema_extra=NOT_HASHED)] = 20
    """Steps between reported training metrics."""
    keep: Annotated[Keep, Field(json_schema_extra=NOT_HASHED)] = Keep()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if self.global_batch < self.accumulation:
            raise ValueError(f"global_batch ({self.global_batch}) must be at least accumulation ({self.accumulation})")
        return self


class Cluster(Section):
    """What the stage takes from the Ray cluster. Never part of a run's identity."""

    workers: PositiveInt = 1
    """Ray Train workers, one process each."""
    min_workers: PositiveInt | None = None
    """Elastic: start and go on with as few as these when the cluster has no room for `workers`; null: fixed number."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs reserved for a worker; its compute threads are this number rounded down, at least 1."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs reserved for a worker; 0: it computes on the CPU."""
    loader_workers: Annotated[int, Field(ge=0)] = 0
    """Data-loading processes of each worker; 0: in the worker itself."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after a worker was lost."""
    storage: str | None = None
    """Where run folders lie: a path or an address such as s3://bucket/folder; null: `<root>/runs`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus_per_worker % 1 and (self.gpus_per_worker > 1 or self.workers > 1):
            raise ValueError(
                f"gpus_per_worker ({self.gpus_per_worker}) must be whole: workers of one training cannot share a GPU"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most workers ({self.workers})")
        return self


class Tracking(Section):
    """MLflow. Never part of a run's identity."""

    uri: str | None = None
    """Tracking server or database; null: `sqlite:///<root>/mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1)] = "scalablevit"
    """MLflow experiment."""
    register_as: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Registered model's name; null: `<recipe>-<stage>`."""


class Stage(Section):
    """One trained model: the sections together."""

    data: Data
    model: Model
    task: Task
    optimizer: Optimizer
    training: Training
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check(self) -> Self:
        wanted = {"classification": "image_folder", "segmentation": "mask_pairs"}[self.task.kind]
        if self.data.source != wanted:
            raise ValueError(f"task {self.task.kind} needs data.source {wanted}, not {self.data.source}")
        needed = self.cluster.workers * self.training.accumulation
        if self.training.global_batch < needed:
            raise ValueError(
                f"training.global_batch ({self.training.global_batch}) is less than cluster.workers x "
                f"training.accumulation ({self.cluster.workers} x {self.training.accumulation} = {needed}): "
                "some micro-batches would be empty"
            )
        return self


class Recipe(Section):
    """A named chain of stages, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    stages: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Stage]

    @model_validator(mode="after")
    def _check(self) -> Self:
        earlier: set[str] = set()
        if not self.stages:
            raise ValueError("a recipe needs at least one stage")
        for name, stage in self.stages.items():
            init = stage.model.init or ""
            if init.startswith("stage:") and init.removeprefix("stage:") not in earlier:
                raise ValueError(
                    f"stages.{name}.model.init is {init!r}, which is no earlier stage ({', '.join(earlier) or 'none'})"
                )
            earlier.add(name)
        tracking = {(stage.tracking.uri, stage.tracking.experiment) for stage in self.stages.values()}
        if len(tracking) > 1:
            raise ValueError(
                "tracking.uri and tracking.experiment must be the same in all stages: they share a parent run"
            )
        return self


class Length(Section):
    """The length of a stage in steps, once the number of training samples is known."""

    steps_per_epoch: float
    total: int
    warmup: int
    evaluate_every: int
    checkpoint_every: int | None
    decay_steps: tuple[int, ...]

    @classmethod
    def of(cls, stage: Stage, train_samples: int) -> Self:
        """Turn epochs into steps.

        Samples follow each other without a gap between epochs, so an epoch is `samples / global_batch` steps, not
        rounded; lengths are rounded to the nearest whole step.
        """
        training, schedule = stage.training, stage.optimizer.schedule
        per_epoch = train_samples / training.global_batch

        def steps(interval: Interval) -> int:
            return interval.steps or max(1, round((interval.epochs or 0) * per_epoch))

        return cls(
            steps_per_epoch=per_epoch,
            total=training.steps or max(1, round((training.epochs or 0) * per_epoch)),
            warmup=schedule.warmup_steps or round(schedule.warmup_epochs * per_epoch),
            evaluate_every=steps(training.evaluate_every),
            checkpoint_every=steps(training.checkpoint_every) if training.checkpoint_every else None,
            decay_steps=tuple(math.ceil(epoch * per_epoch) for epoch in schedule.decay_epochs),
        )
