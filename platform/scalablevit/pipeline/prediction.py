"""Arithmetic of a planned training: from a step's time and a device's memory to hours, traffic and cost."""

import math
from dataclasses import dataclass

from scalablevit.config.recipe import Length, Stage
from scalablevit.runs.console import format_duration
from scalablevit.training.memory_estimate import MemoryEstimate

EVALUATED_SHARE = 1 / 3
"""Of a training step's time per image, for an image in evaluation: the backward pass takes twice the forward pass."""


@dataclass(frozen=True)
class Given:
    """What a prediction starts from."""

    devices: int
    train_images: int
    val_images: int
    step_s: float
    """Seconds of an optimizer step of one device by itself."""
    step_images: int
    """Images of that step."""
    bandwidth_gb_s: float
    """That a device sends at in an all-reduce, 10^9 bytes a second."""
    decoded_per_s: float | None
    """Training samples that a core decodes in a second."""
    price_per_hour: float | None
    """Of one device."""


@dataclass(frozen=True)
class Prediction:
    """What a training is expected to take."""

    steps: int
    images_per_device: int
    """Of a step, on the device with the largest share."""
    compute_s: float
    """Of a step."""
    exchange_bytes: int
    """That each device sends in a step."""
    exchange_s: float
    """Of a step."""
    images_per_s: float
    training_hours: float
    evaluations: int
    evaluation_hours: float
    checkpoints: int
    checkpoint_traffic_bytes: int
    """Written over the whole training."""
    checkpoint_storage_bytes: int
    """Kept at a time, with the one being written."""
    decode_cores: float | None
    """Busy on all devices together."""
    cost: float | None
    """In the unit of the price."""

    @property
    def hours(self) -> float:
        """Of training and evaluation."""
        return self.training_hours + self.evaluation_hours

    @property
    def efficiency(self) -> float:
        """Share of a step's time in which devices compute."""
        return self.compute_s / (self.compute_s + self.exchange_s)


def predict(stage: Stage, given: Given, memory: MemoryEstimate) -> Prediction:
    """A stage's training to its last step, without restarts and early stopping.

    Time grows with the images of a step; gradients go around a ring (Patarasu and Yuan, J. Parallel Distrib. Comput.
    2009: 2 (n - 1) / n of them leave each of n devices), which nothing hides; evaluation exchanges nothing.
    """
    training, length, devices = stage.training, Length.of(stage, given.train_images), given.devices
    share = math.ceil(training.global_batch_size / devices)
    compute_s = given.step_s * share / given.step_images
    exchange_bytes = round(2 * (devices - 1) / devices * memory.gradients)
    exchange_s = exchange_bytes / (given.bandwidth_gb_s * 1e9)
    images_per_s = training.global_batch_size / (compute_s + exchange_s)
    training_hours = length.total * (compute_s + exchange_s) / 3600
    evaluations = len(_multiples(length.total, length.evaluate_every))
    seen = evaluations * math.ceil(given.val_images / devices)
    evaluation_hours = seen * EVALUATED_SHARE * given.step_s / given.step_images / 3600
    checkpoints = len(_multiples(length.total, length.evaluate_every, length.checkpoint_every))
    return Prediction(
        steps=length.total,
        images_per_device=share,
        compute_s=compute_s,
        exchange_bytes=exchange_bytes,
        exchange_s=exchange_s,
        images_per_s=images_per_s,
        training_hours=training_hours,
        evaluations=evaluations,
        evaluation_hours=evaluation_hours,
        checkpoints=checkpoints,
        checkpoint_traffic_bytes=checkpoints * memory.checkpoint,
        checkpoint_storage_bytes=min(checkpoints, training.keep.last + training.keep.best + 1) * memory.checkpoint,
        decode_cores=images_per_s / given.decoded_per_s if given.decoded_per_s else None,
        cost=given.price_per_hour * devices * (training_hours + evaluation_hours) if given.price_per_hour else None,
    )


def _multiples(total: int, *intervals: int | None) -> set[int]:
    """Steps that are a multiple of one of the intervals, and the last step."""
    return {step for every in intervals if every for step in range(every, total + 1, every)} | {total}


def told(stage: Stage, given: Given, memory: MemoryEstimate, found: Prediction) -> dict[str, str]:
    """The prediction for people, by name."""
    cluster, training = stage.cluster, stage.training
    micro = math.ceil(found.images_per_device / training.accumulation_steps)
    kind = "GPU" if cluster.gpus_per_worker else "CPU"
    seconds, written = found.hours * 3600, found.checkpoint_traffic_bytes
    facts = {
        "devices": f"{given.devices} x {kind}, {found.images_per_device} images each in a step, {micro} at a time",
        "step": f"{found.compute_s:.4g} s computing + {found.exchange_s:.4g} s exchanging "
        f"{found.exchange_bytes / 2**20:.4g} MiB of gradients a device ({100 * found.efficiency:.1f} % efficient): "
        f"assumes a ring at {given.bandwidth_gb_s:g} GB/s, none of it hidden behind the backward pass",
        "speed": f"{found.images_per_s:.4g} images/s, {found.images_per_s / given.devices:.4g} a device",
        "time": f"{found.hours:.3g} h ({format_duration(seconds)}): {found.steps} steps {found.training_hours:.3g} h, "
        f"{found.evaluations} evaluations {found.evaluation_hours:.3g} h (an image in a third of its training time)",
        "decoding": "not predicted: give --decode-rate, or --measure where the data is"
        if found.decode_cores is None
        else f"{found.decode_cores:.1f} cores in all, {found.decode_cores / given.devices:.1f} a device, at "
        f"{given.decoded_per_s:.4g} images/s a core; the recipe has {max(1, cluster.loader_workers)} "
        f"{'loading processes' if cluster.loader_workers else 'process, the worker itself,'} a device",
        "memory": f"{_gib(memory.total)} a device at most: weights {_gib(memory.weights)}, gradients "
        f"{_gib(memory.gradients)}, optimizer {_gib(memory.moments)}, average {_gib(memory.average)}, activations "
        f"{_gib(memory.activations)}",
        "checkpoints": f"{_gib(memory.checkpoint)} each, {found.checkpoints} of them write {_gib(written)}, "
        f"{written / seconds / 1e6:.3g} MB/s on average; "
        f"{_gib(found.checkpoint_storage_bytes)} of storage",
    }
    if found.cost is not None:
        facts["cost"] = f"{found.cost:.2f} at {given.price_per_hour:g} an hour and device"
    return facts


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
