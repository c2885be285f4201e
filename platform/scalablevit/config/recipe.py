"""The recipe: everything that decides what a stage trains, as frozen, strict sections."""

import math
from itertools import accumulate, pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from scalablevit.config.data import Data, LabelledImages
from scalablevit.config.packages import PLATFORM, refuse_other_modules, top_level
from scalablevit.config.promotion import Promotion
from scalablevit.config.section import NOT_HASHED, OptionValue, PlainValues, PositiveInt, Section, SectionError
from scalablevit.config.task import Task, head_of
from scalablevit.config.task_info import task_info
from scalablevit.config.transforms import TRANSFORMS

FIRST_STEPS = (1, 2, 5, 10, 50, 100)
"""Steps reported and shown whatever `training.log_every_steps` is: they show whether training works at all."""


Event = Literal["finished", "failed", "promoted", "refused", "stalled"]
"""What people can be notified of."""

MOST_IMPORTS = 16
"""Most modules under a stage's `imports`."""
SOURCE_KEYS = {
    "mask_pairs": ", with train.masks, val.masks and classes",
    "coco": ", with train.annotations and val.annotations",
}
"""What a source of data needs besides images, in words."""


class Model(Section):
    """The backbone."""

    name: str
    """A ScalableViT or any timm architecture (dense tasks: with maps at strides 4, 8, 16, 32)."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Stochastic depth, rising linearly to this rate; null: the architecture's own."""
    init: str | None = None
    """null (random), a .safetensors or .pth file, `timm:<tag>`, `models:/<name>@<alias>` or `stage:<name>`."""
    options: dict[str, OptionValue] = {}  # noqa: RUF012  # pydantic copies defaults
    """Further constructor arguments, e.g. `wide_value`, `local_interaction`, `window` of ScalableViT."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    channels_last: bool = False
    """Keep convolution tensors in NHWC memory."""


class Schedule(Section):
    """Learning rate by step: linear warm-up, then the curve."""

    kind: Literal["cosine", "multistep", "polynomial", "constant"] = "cosine"
    """Form of the curve."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 0.0
    """Length of the linear warm-up in epochs; not together with `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0, le=10**12)] = 0
    """Length of the linear warm-up in steps."""
    warmup_lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at step 0 of a warm-up."""
    warmup_prefix: bool = False
    """Where the curve starts. false: at step 0, so that the warm-up replaces its beginning and ends below
    `optimizer.lr`. true: after the warm-up, at `optimizer.lr`; `decay_epochs` then count from there."""
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
    """AdamW, or SGD with Nesterov momentum."""
    lr: Annotated[float, Field(gt=0, le=10)]
    """Learning rate at the start of the schedule's curve, for the global batch as given (never rescaled for
    you); a warm-up reaches all of it only with `schedule.warmup_prefix`."""
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
    """Passes over the training split; or `steps`."""
    steps: PositiveInt | None = None
    """Optimizer steps; or `epochs`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class ImageSizePhase(Interval):
    """A size of training images, and how long it is kept."""

    size: Annotated[int, Field(ge=16, le=4096)]
    """Side of the square training crop, pixels."""


class EarlyStopping(Section):
    """Early stopping."""

    patience: PositiveInt
    """Evaluations in a row without a gain over the best so far, after which training stops."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest gain of the metric that counts, as a fraction (0.01: one point)."""


class Keep(Section):
    """How many checkpoints stay."""

    last: PositiveInt = 2
    """Newest ones."""
    best: Annotated[int, Field(ge=0, le=10**12)] = 1
    """Best ones by the task's metric."""


class Nonfinite(Section):
    """What to do with a step whose loss or gradient is infinite or not a number, on whichever worker."""

    action: Literal["stop", "skip", "rollback"] = "stop"
    """stop: end at the next log point, before anything is saved. skip: leave the step's update out. rollback: go back
    to the last checkpoint, and on with the samples that come after the bad step's. The last two look at every step,
    for which a GPU has to be waited for."""
    limit: PositiveInt = 3
    """Steps skipped in a row, or roll-backs of the run; at one more, training stops."""
    capture: bool = False
    """Write the step's samples, and weights and optimizer as they were before it, into the run's `nonfinite/`, from
    which `pipelines/replay.py` takes the step again; the first ten steps of a run. Every step is looked at."""


class Training(Section):
    """The loop."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Length in passes over the training split; or `steps`."""
    steps: PositiveInt | None = None
    """Length in optimizer steps; or `epochs`."""
    global_batch_size: PositiveInt
    """Samples of one optimizer step, over all workers and accumulation."""
    accumulation_steps: PositiveInt = 1
    """Micro-batches of a step on each worker."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: autocast; weights and optimizer stay float32."""
    cpu_linear: Annotated[Literal["auto", "torch", "onednn"], Field(json_schema_extra=NOT_HASHED)] = "auto"
    """Library of the linear layers on a CPU in float32 without `compile`; without effect on a GPU. auto: oneDNN on AMD
    from Zen 5 on, else torch's own choice. Decided by the first worker when the run begins, and kept by the run and its
    registered model, since results differ by rounding."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides data order, augmentation, mixing, initialisation and drop path."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential moving average of the weights, which is then evaluated and registered; null: off."""
    ema_warmup: bool = True
    """Let the average forget its first steps: the decay after t steps is at most 1 - (1 + t)^(-2/3). false: `ema_decay`
    at every step, so that the first weights stay in the average for about 1 / (1 - ema_decay) steps."""
    compile: bool | Literal["blocks"] = False
    """torch.compile. blocks: of each repeated block of the backbone by itself, in training and evaluation; once for all
    that are alike, so it starts soonest. For images of one size (classification) that keeps exact resumption; where
    sizes vary, kernels are made for all sizes at the second one, and a resumed run is equal within rounding only. true:
    of the whole model, in training only. Every node needs a compiler."""
    deterministic: bool = False
    """Ask torch for deterministic algorithms (CUDA); operations that have none are named at the end.
    Attention then takes its plain form, which needs more memory."""
    image_size_schedule: tuple[ImageSizePhase, ...] = ()
    """Classification: train on smaller images first. Sizes that rise, one after the other; `data.image_size` follows,
    and evaluation always has it. Early steps take less time, and all of a step's images have one size."""
    evaluate_every: Interval = Interval(epochs=1.0)
    """Evaluation on the validation split; the last step is always evaluated."""
    early_stopping: EarlyStopping | None = None
    """Early stopping; null: off."""
    checkpoint_every: Annotated[Interval | None, Field(json_schema_extra=NOT_HASHED)] = None
    """Checkpoints besides those after each evaluation; null: none."""
    log_every_steps: Annotated[int, Field(ge=1, le=10**12, json_schema_extra=NOT_HASHED)] = 20
    """Steps between reported training metrics; those of `FIRST_STEPS` are reported besides."""
    keep: Annotated[Keep, Field(json_schema_extra=NOT_HASHED)] = Keep()
    nonfinite: Annotated[Nonfinite, Field(json_schema_extra=NOT_HASHED)] = Nonfinite()
    on_checkpoint_failure: Annotated[Literal["continue", "stop"], Field(json_schema_extra=NOT_HASHED)] = "continue"
    """When a checkpoint cannot be written (a full disk): go on and try the next one, or stop at the next log point.
    The checkpoints before it stay either way, and a run whose last one is missing does not count as finished."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        if self.global_batch_size < self.accumulation_steps:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be at least "
                f"accumulation_steps ({self.accumulation_steps})"
            )
        sizes = [phase.size for phase in self.image_size_schedule]
        if sizes != sorted(set(sizes)):
            raise SectionError(f"the sizes {sizes} must rise", "order the phases by size, smallest first",
                               "image_size_schedule")  # fmt: skip
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
    loader_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Data-loading processes of each worker; 0: in the worker itself."""
    max_failures: Annotated[int, Field(ge=0, le=10**6)] = 3
    """Restarts from the last checkpoint after a worker was lost."""
    wait_for_nodes_minutes: Annotated[float, Field(ge=0, le=10**6)] = 20.0
    """Longest wait for nodes that the cluster's autoscaler starts, each time; 0: only nodes that are there count."""
    storage: str | None = None
    """Where run folders are: a path or an address such as s3://bucket/folder; null: `<root>/runs`."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus_per_worker % 1 and (self.gpus_per_worker > 1 or self.workers > 1):
            raise ValueError(
                f"gpus_per_worker ({self.gpus_per_worker}) must be whole: workers of one training cannot share a GPU"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most workers ({self.workers})")
        if (self.storage or "").startswith("file:"):  # as an address it would not be tried whether all nodes see it
            raise SectionError(f"storage is a folder, not {self.storage}", "write its path alone", "storage")
        if "://" in (self.storage or "") and set("@?#") & set(self.storage or ""):
            raise ValueError(
                "storage must be an address without credentials or a query, since it is written into every run; "
                "credentials are taken from the environment (such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
            )
        return self


class Tracking(Section):
    """MLflow. Never part of a run's identity."""

    uri: str | None = Field(default=None, repr=False)  # it may hold a password, and notebooks keep what they show
    """Tracking server or database; null: `sqlite:///<root>/mlflow.db`."""
    experiment: Annotated[str, Field(min_length=1)] = "scalablevit"
    """MLflow experiment."""
    register_as: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Registered model's name; null: `<recipe>-<stage>`."""
    log_images: bool = False
    """Send images of the data to MLflow, too: the plots of the first training batch and of validation images, and those
    in the report. false: they stay in the run's folder. Those of the built-in shapes are always sent. A
    run that has finished sends no more plots."""
    notify: tuple[Event, ...] = ()
    """What people are notified of: a run that finished, failed, or stalled (no news for half an hour), a version that
    was promoted or refused. Whom, and how, only the environment of the job says (SCALABLEVIT_NOTIFY_WEBHOOK)."""


class Stage(Section):
    """One trained model: the sections together."""

    data: Data
    model: Model
    task: Task
    optimizer: Optimizer
    training: Training
    cluster: Cluster = Cluster()
    tracking: Tracking = Tracking()
    promotion: Promotion = Promotion()
    imports: Annotated[tuple[str, ...], Field(max_length=MOST_IMPORTS)] = ()
    """Users' own modules, such as `my_package` or `my_package.tasks`: imported once all else is checked, by the driver,
    its workers and the registered model, so that what they register (tasks, sources, backbones) can be named here.
    Reading a recipe imports nothing."""

    @field_validator("imports")
    @classmethod
    def _are_users_own(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            refuse_other_modules(name)
        if len(set(names)) < len(names):
            raise ValueError("a name occurs twice")
        return names

    @model_serializer(mode="wrap")
    def _drop_empty_imports(self, serialize: SerializerFunctionWrapHandler) -> PlainValues:
        """Drop an empty `imports`, so that such stages are stored, sent and hashed as before the key existed."""
        values: PlainValues = serialize(self)
        if not values.get("imports"):
            values.pop("imports", None)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_origin()
        info = task_info(self.task.kind)
        if self.data.source not in info.sources:
            sources = " or ".join(info.sources)
            raise SectionError(
                f"task {info.kind} needs data.source {sources}, not {self.data.source}",
                f"write data.source: {sources}{SOURCE_KEYS.get(sources, '')}",
                "data",
                "source",
            )
        self.task.check_data(self.data)
        metrics = info.promotion_metrics(head_of(self.task))
        if self.promotion.metric not in (None, *metrics):
            raise ValueError(f"promotion.metric must be {' or '.join(metrics)} here, not {self.promotion.metric}")
        needed = self.cluster.workers * self.training.accumulation_steps
        if self.training.global_batch_size < needed:
            raise ValueError(
                f"training.global_batch_size ({self.training.global_batch_size}) is less than cluster.workers x "
                f"training.accumulation_steps ({self.cluster.workers} x {self.training.accumulation_steps} = "
                f"{needed}): some micro-batches would be empty"
            )
        self._check_image_sizes()
        return self

    def _check_image_sizes(self) -> None:
        """Refuse a schedule of image sizes for data without such a size, or one that does not end below it."""
        schedule = self.training.image_size_schedule
        if not schedule:
            return
        if not isinstance(self.data, LabelledImages):
            raise SectionError("training images of mask_pairs and coco have no fixed size to schedule",
                               "leave it out; data.scale_range or data.train_short_sides vary the size",
                               "training", "image_size_schedule")  # fmt: skip
        if schedule[-1].size >= self.data.image_size:
            raise SectionError(
                f"the last size, {schedule[-1].size}, must be below data.image_size ({self.data.image_size})",
                "leave out sizes from data.image_size on: it follows by itself",
                "training", "image_size_schedule",
            )  # fmt: skip

    def _check_origin(self) -> None:
        """Refuse a registered kind whose package the workers would not import."""
        known = {PLATFORM, *map(top_level, self.imports)}
        for key, section in (("task.kind", self.task), ("data.source", self.data)):
            package = top_level(type(section).__module__)
            if package not in known:
                kind = getattr(section, key.partition(".")[2])
                raise ValueError(f"{key} {kind} is defined by {package}: name it in this stage's imports")
        for name in getattr(self.data, "transforms", ()):
            package = top_level(TRANSFORMS[name].__module__)
            if package not in known:
                raise ValueError(f"transform {name} is defined by {package}: name it in this stage's imports")


class Recipe(Section):
    """A named chain of stages, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    """Begins the names of runs and of registered models: `<name>-<stage>`."""
    version: Literal[2] = 2
    """Version of the recipe's keys; files without it are read as this one. Part of a run's identity."""
    stages: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Stage]
    """By name, in order; a file of one stage has its sections at the top instead."""
    tune: str | None = None
    """A search space, relative to the recipe's file, or a shipped one's name: `full.py` searches before it trains, and
    trains what it found."""

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
    """Optimizer steps, not rounded."""
    total: int
    """Optimizer steps of the stage."""
    warmup: int
    """Steps of the warm-up."""
    evaluate_every: int
    """Steps between evaluations."""
    checkpoint_every: int | None
    """Steps between checkpoints besides those after evaluations; None: no others."""
    decay_steps: tuple[int, ...]
    """Steps, counted from the start of the curve, at which the learning rate is multiplied by `gamma`."""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """(end, side): up to the step `end` training images have a side of so many pixels, later of `image_size`."""
    image_size: int = 0
    """Side of training images in pixels, the last one where it changes; 0: they have no fixed size."""

    def work(self, step: int) -> float:
        """Return the pixels of all training images up to a step, in those of a step with images of the last size."""
        if not self.image_sizes:
            return step
        ends = [0, *(min(end, step) for end, _ in self.image_sizes), step]
        sides = [*(side for _, side in self.image_sizes), self.image_size]
        pixels = sum((end - begin) * side**2 for (begin, end), side in zip(pairwise(ends), sides, strict=True))
        return pixels / self.image_size**2

    @classmethod
    def of(cls, stage: Stage, train_samples: int) -> Self:
        """Convert a stage's lengths in epochs to steps.

        Samples follow each other without a gap between epochs, so an epoch has `samples / global_batch_size` steps, not
        rounded; lengths are rounded to whole steps, decays up.

        Args:
            stage: the stage.
            train_samples: samples of its training split.
        """
        training, schedule = stage.training, stage.optimizer.schedule
        per_epoch = train_samples / training.global_batch_size

        def steps(interval: Interval) -> int:
            return interval.steps or max(1, round((interval.epochs or 0) * per_epoch))

        return cls(
            steps_per_epoch=per_epoch,
            total=training.steps or max(1, round((training.epochs or 0) * per_epoch)),
            warmup=schedule.warmup_steps or round(schedule.warmup_epochs * per_epoch),
            evaluate_every=steps(training.evaluate_every),
            checkpoint_every=steps(training.checkpoint_every) if training.checkpoint_every else None,
            decay_steps=tuple(math.ceil(epoch * per_epoch) for epoch in schedule.decay_epochs),
            image_size=stage.data.image_size if isinstance(stage.data, LabelledImages) else 0,
            image_sizes=tuple(zip(accumulate(map(steps, training.image_size_schedule)),
                                  (phase.size for phase in training.image_size_schedule), strict=True)),
        )  # fmt: skip
