"""What the loop passes to a task: the samples of a micro-batch, each kind of task's in a class of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from scalablevit.data.instances import Instances

AnyBatch = TypeVar("AnyBatch", bound="Batch")
BatchOfTask = Any
"""In protocols of tasks: a batch of the class that the task's `collate` returns. Each task's own methods name it."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images and what is known of them; a user's own task may add fields in a class of its own."""

    image: Any
    """From the loader uint8 (samples, height, width, 3), or a list of (height, width, 3) where sizes differ; from the
    task's `prepare` float (samples, 3, height, width), or a list of (3, height, width)."""
    samples: int
    """Good ones; with 0 the stacked tensors have size 0 in every dimension but the channels."""
    index: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Int64 (samples,), numbers in the source."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each sample that was left out."""
    changed: list[str] = field(default_factory=list)
    """Of these, the paths of files that are not those that the run began with."""

    def pin_memory(self) -> Self:
        """Return it in pinned memory: what torch's DataLoader calls when it is to copy batches to CUDA."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True, kw_only=True)
class LabelBatch(Batch):
    """Images with labels."""

    label: Tensor
    """Int64 (samples,), for users' own tasks perhaps (samples, classes)."""
    target: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Float32 (samples, classes): soft labels, which `prepare` makes in training; before that of no element."""


@dataclass(frozen=True, kw_only=True)
class MaskBatch(Batch):
    """Images with label maps."""

    mask: Any
    """Uint8 (samples, height, width), in evaluation a list of (height, width)."""


@dataclass(frozen=True, kw_only=True)
class BoxBatch(Batch):
    """Detection's training images, each with its objects."""

    boxes: list[Tensor]
    """Float32 (n, 4): x1, y1, x2, y2, pixels."""
    labels: list[Tensor]
    """Int64 (n,)."""
    masks: list[Tensor] | None = None
    """Uint8 (n, height, width), where masks are read."""


@dataclass(frozen=True, kw_only=True)
class InstanceBatch(Batch):
    """Detection's evaluation images, each with what it shows in its original pixels."""

    instances: list[Instances]


def map_tensors(batch: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
    """Return a batch with its tensors, and those in its lists, changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return [changed(each) for each in value] if isinstance(value, list) else value

    return replace(batch, **{each.name: changed(getattr(batch, each.name)) for each in fields(batch)})


def named_tensors(batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Yield a batch's tensors by field, those of a list as `field/number`."""
    for each in fields(batch):
        value = getattr(batch, each.name)
        if isinstance(value, Tensor):
            yield each.name, value
        elif isinstance(value, list):
            yield from ((f"{each.name}/{n}", tensor) for n, tensor in enumerate(value) if isinstance(tensor, Tensor))
