"""Predict a training's hours, traffic and cost from the time of a step and the memory of a device."""

import math
from dataclasses import dataclass

from scalablevit.config.recipe import Length, Stage
from scalablevit.runs.console import format_duration
from scalablevit.training.memory_estimate import MemoryEstimate

EVALUATED_SHARE = 1 / 3
"""Time of an image in evaluation, as a share of its time in training: the backward pass takes twice the forward
pass."""


@dataclass(frozen=True)
class PredictionInputs:
    """What a prediction starts from."""

    devices: int
    """Devices that train together."""
    train_images: int
    """Images of the training split."""
    val_images: int
    """Images of the validation split."""
    step_s: float
    """Seconds of an optimizer step of one device by itself."""
    step_images: int
    """Images of that step."""
    bandwidth_gb_s: float
    """What a device sends in an all-reduce, 10^9 bytes a second."""
    decoded_per_s: float | None
    """Training samples that a core decodes in a second; None: not known."""
    price_per_hour: float | None
    """Of one device, in any currency; None: not known."""


@dataclass(frozen=True)
class Prediction:
    """What a training is expected to take."""

    steps: int
    """Optimizer steps."""
    images_per_device: int
    """Images of a step, on the device with the largest share."""
    compute_s: float
    """Seconds of a step in which devices compute."""
    exchange_bytes: int
    """Bytes that each device sends in a step."""
    exchange_s: float
    """Seconds of a step in which devices exchange gradients."""
    images_per_s: float
    """Training images, on all devices together."""
    training_hours: float
    evaluations: int
    evaluation_hours: float
    checkpoints: int
    checkpoint_traffic_bytes: int
    """Bytes written over the whole training."""
    checkpoint_storage_bytes: int
    """Bytes kept at a time, with the checkpoint being written."""
    decode_cores: float | None
    """Cores that decode, on all devices together; None: not known."""
    cost: float | None
    """In the currency of the price; None: not known."""

    @property
    def hours(self) -> float:
        """Return the hours of training and evaluation."""
        return self.training_hours + self.evaluation_hours

    @property
    def efficiency(self) -> float:
        """Return the share of a step's time in which devices compute, from 0 to 1."""
        return self.compute_s / (self.compute_s + self.exchange_s)


def predict(stage: Stage, inputs: PredictionInputs, memory: MemoryEstimate) -> Prediction:
    """Predict a stage's training to its last step, without restarts and early stopping.

    Time grows linearly with the images of a step, and with their pixels where their size changes. Gradients are
    exchanged in a ring, which takes time of its own; in evaluation nothing is exchanged.

    Source: ring all-reduce: Patarasu and Yuan, J. Parallel Distrib. Comput. 2009: each of n devices sends 2 (n - 1) / n
    of the gradients' bytes.

    Args:
        stage: the stage.
        inputs: what the prediction starts from.
        memory: bytes on each device.
    """
    training, length, devices = stage.training, Length.of(stage, inputs.train_images), inputs.devices
    share = math.ceil(training.global_batch_size / devices)
    compute_s = inputs.step_s * share / inputs.step_images
    exchange_bytes = round(2 * (devices - 1) / devices * memory.gradients)
    exchange_s = exchange_bytes / (inputs.bandwidth_gb_s * 1e9)
    images_per_s = training.global_batch_size / (compute_s + exchange_s)
    training_hours = (length.work(length.total) * compute_s + length.total * exchange_s) / 3600
    evaluations = len(_multiples(length.total, length.evaluate_every))
    evaluated_images = evaluations * math.ceil(inputs.val_images / devices)
    evaluation_hours = evaluated_images * EVALUATED_SHARE * inputs.step_s / inputs.step_images / 3600
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
        decode_cores=images_per_s / inputs.decoded_per_s if inputs.decoded_per_s else None,
        cost=inputs.price_per_hour * devices * (training_hours + evaluation_hours) if inputs.price_per_hour else None,
    )


def _multiples(total: int, *intervals: int | None) -> set[int]:
    """Return the steps that are a multiple of one of the intervals, and the last step."""
    return {step for every in intervals if every for step in range(every, total + 1, every)} | {total}


def format_prediction(
    stage: Stage, inputs: PredictionInputs, memory: MemoryEstimate, prediction: Prediction
) -> dict[str, str]:
    """Return the prediction as texts by name."""
    cluster, training = stage.cluster, stage.training
    micro = math.ceil(prediction.images_per_device / training.accumulation_steps)
    kind = "GPU" if cluster.gpus_per_worker else "CPU"
    seconds, written = prediction.hours * 3600, prediction.checkpoint_traffic_bytes
    facts = {
        "devices": f"{inputs.devices} x {kind}, {prediction.images_per_device} images each in a step, "
        f"{micro} at a time",
        "step": f"{prediction.compute_s:.4g} s computing, and one device has nothing to exchange"
        if inputs.devices == 1
        else f"{prediction.compute_s:.4g} s computing + {prediction.exchange_s:.4g} s exchanging "
        f"{prediction.exchange_bytes / 2**20:.4g} MiB of gradients a device ({100 * prediction.efficiency:.1f} % "
        f"efficient): assumes a ring at {inputs.bandwidth_gb_s:g} GB/s, none of it hidden behind the backward pass",
        "speed": f"{prediction.images_per_s:.4g} images/s, {prediction.images_per_s / inputs.devices:.4g} a device",
        "time": f"{format_duration(seconds)}: {prediction.steps} steps "
        f"{format_duration(3600 * prediction.training_hours)}, {prediction.evaluations} evaluations "
        f"{format_duration(3600 * prediction.evaluation_hours)} (an image in a third of its training time)",
        "decoding": "not predicted: give --decode-rate, or --measure where the data is"
        if prediction.decode_cores is None
        else f"{prediction.decode_cores:.1f} cores in all, {prediction.decode_cores / inputs.devices:.1f} a device, at "
        f"{inputs.decoded_per_s:.4g} images/s a core; the recipe has {max(1, cluster.loader_workers)} "
        f"{'loading processes' if cluster.loader_workers else 'process, the worker itself,'} a device",
        "memory": f"{_gib(memory.total)} a device at most: weights {_gib(memory.weights)}, gradients "
        f"{_gib(memory.gradients)}, optimizer {_gib(memory.moments)}, average {_gib(memory.average)}, activations "
        f"{_gib(memory.activations)}",
        "checkpoints": f"{_gib(memory.checkpoint)} each, {prediction.checkpoints} of them write {_gib(written)}, "
        f"{written / seconds / 1e6:.3g} MB/s on average; "
        f"{_gib(prediction.checkpoint_storage_bytes)} of storage",
    }
    if prediction.cost is not None:
        facts["cost"] = f"{prediction.cost:.2f} at {inputs.price_per_hour:g} an hour and device"
    return facts


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
