"""Measures how long a training step, and the decoding of samples, take on this machine."""

import time
from statistics import median

import torch

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Length, Stage
from scalablevit.config.user_code import stage_from_json
from scalablevit.data.batch import Batch
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.loader import build_loader, to_device
from scalablevit.data.sampler import Key
from scalablevit.data.sources.base import Source
from scalablevit.models.cpu_linear import use_library
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.task import Task
from scalablevit.training.library_choice import choose_library
from scalablevit.training.loop import TrainContext, distributed, train_step
from scalablevit.training.worker import configure_torch, new_state

WARM_UP_STEPS = 3
"""Steps before the measurement: kernels are chosen and compiled, and the optimizer creates its moments."""
STEPS = 10
"""Steps that are measured."""
DECODED = 64
"""Most samples whose decoding is measured."""


def median_step_s(stage: Stage, task: Task, images: int, device: torch.device) -> float:
    """Return the median seconds of an optimizer step on one device, on blank images, without data loading.

    There is one rank, so no gradients are exchanged.

    Args:
        stage: the stage.
        task: the stage's task.
        images: number of images of a step, over its micro-batches; a multiple of their number.
        device: the device to measure.
    """
    configure_torch(stage)
    training = stage.training.model_copy(update={"global_batch_size": images})
    context = TrainContext(
        stage.model_copy(update={"training": training}), Length.of(stage, images), task, device, 0, 1
    )
    state = new_state(context, task.build_model())
    use_library(state.model, choose_library(stage, device))
    model = distributed(context, state.model).train()
    costs = task_kind(stage.task.kind).build_costs(stage, task.classes)
    blank = to_device(costs.blank_batch(images // training.accumulation_steps), device)
    micro_batches = [blank] * training.accumulation_steps
    seconds = []
    for _ in range(WARM_UP_STEPS + STEPS):
        start = time.perf_counter()
        train_step(context, model, state, micro_batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP_STEPS:])


def cpu_step_s(stage_json: str, classes: tuple[str, ...], images: int) -> float | tuple[str, str, str]:
    """Return `median_step_s` on the CPU, for plain values; a UserError is returned as its what, where and fix."""
    try:
        stage = stage_from_json(stage_json)
        return median_step_s(stage, build_task(stage, classes), images, torch.device("cpu"))
    except UserError as error:
        return error.what, error.where, error.fix


def decoded_per_s(stage: Stage, task: Task, source: Source) -> float:
    """Return the training samples that one core reads, decodes, augments and collates in a second.

    It is 0 if none of the samples could be decoded.
    """
    samples = SampleDataset(source, stage.data, stage.training.seed, train=True)
    keys = [Key(index, 0, index) for index in range(min(DECODED, len(source)))]
    device = torch.device("cpu")
    # the first batch includes the time of what is set up once
    batches = iter(build_loader(samples, [keys[:1], keys], task.collate("train"), workers=0, device=device))
    next(batches)
    start = time.perf_counter()
    batch: Batch = next(batches)
    return float(batch.samples / (time.perf_counter() - start))
