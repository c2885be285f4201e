"""Micro-batches, one class for each kind of task: the training loop passes them to the task."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from scalablevit.data.instances import Instances

AnyBatch = TypeVar("AnyBatch", bound="Batch")
BatchOfTask = Any
"""In protocols of tasks: a batch of the class that the task's `collate` returns. Tasks annotate their own class."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images, without labels; each kind of task, also a user's own, adds fields in a class derived from this one."""

    images: Any
    """From the loader uint8 (samples, height, width, 3), or a list of (height, width, 3) where sizes differ; from the
    task's `prepare` float (samples, 3, height, width), or a list of (3, height, width)."""
    samples: int
    """Number of samples without the bad ones; with 0 the stacked images are (0, 0, 0, 3). Training puts one or
    two blank images in place of such a batch, which add nothing to loss and gradient (batch norm's running statistics
    do take them in), and evaluation leaves it out."""
    indices: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Int64 (samples,), indices in the source."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each sample that was skipped."""
    changed: list[str] = field(default_factory=list)
    """Those of the paths in `bad` whose contents have changed since the run began."""

    def pin_memory(self) -> Self:
        """Return the batch in pinned memory; torch's DataLoader calls this before batches are copied to CUDA."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class LabelBatch(Batch):
    """Images with labels."""

    labels: Tensor
    """Int64 class indices (samples,); users' multi-label tasks may have 0 or 1 for each class (samples, classes)."""
    targets: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Float32 (samples, classes): soft labels, which `prepare` makes in training; empty (0,) before that."""


@dataclass(frozen=True, kw_only=True)
class MaskBatch(Batch):
    """Images with label maps."""

    masks: Any
    """Uint8 labels, 255 ignored: (samples, height, width), in evaluation a list of (height, width)."""


@dataclass(frozen=True, kw_only=True)
class DetectionTrainBatch(Batch):
    """Detection's training images, each with its n objects."""

    boxes: list[Tensor]
    """Float32 (n, 4): x1, y1, x2, y2, in the image's pixels."""
    labels: list[Tensor]
    """Int64 (n,), class indices from 0."""
    masks: list[Tensor] | None = None
    """Uint8 (n, height, width), 0 or 1; None: masks are not read."""


@dataclass(frozen=True, kw_only=True)
class DetectionEvalBatch(Batch):
    """Detection's evaluation images, each with its annotated objects in the original image's pixels."""

    instances: list[Instances]


def map_tensors(batch: AnyBatch, function: Callable[[Tensor], Tensor]) -> AnyBatch:
    """Return a batch with a function applied to its tensors, also to those in lists."""

    def apply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return function(value)
        return [apply(entry) for entry in value] if isinstance(value, list) else value

    return replace(batch, **{item.name: apply(getattr(batch, item.name)) for item in fields(batch)})


def named_tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield a batch's tensors by name: that of the field, or `field/index` in a list."""
    for item in fields(batch):
        value = getattr(batch, item.name)
        if isinstance(value, Tensor):
            yield item.name, value
        elif isinstance(value, list):
            yield from ((f"{item.name}/{n}", tensor) for n, tensor in enumerate(value) if isinstance(tensor, Tensor))
