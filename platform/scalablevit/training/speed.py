"""How long a training step, and a sample's decoding, take on this machine."""

import time
from statistics import median

import cv2
import torch

from scalablevit.config.recipe import Length, Stage
from scalablevit.data.dataset import Bad, SampleDataset
from scalablevit.data.loader import to_device
from scalablevit.data.sampler import Key
from scalablevit.data.sources import Source
from scalablevit.tasks.task import Task
from scalablevit.training.loop import Plan, distributed, train_step
from scalablevit.training.worker import configure_torch, new_state

WARM_UP_STEPS = 3
"""Taken before those that count: kernels are chosen and compiled, and the optimizer gets its moments."""
STEPS = 10
"""That count."""
DECODED = 64
"""Samples whose decoding is timed."""


def median_step_s(stage: Stage, task: Task, images: int, device: torch.device) -> float:
    """Median seconds of an optimizer step of one device on blank images, without data loading and without exchange.

    Args:
        images: of a step, over its micro-batches; a multiple of their number.
    """
    configure_torch(stage)
    training = stage.training.model_copy(update={"global_batch": images})
    plan = Plan(stage.model_copy(update={"training": training}), Length.of(stage, images), task, device, 0, 1)
    state = new_state(plan, task.build_model())
    model = distributed(plan, state.model).train()
    micro_batches = [to_device(task.blank_batch(images // training.accumulation), device)] * training.accumulation
    seconds = []
    for _ in range(WARM_UP_STEPS + STEPS):
        start = time.perf_counter()
        train_step(plan, model, state, micro_batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[WARM_UP_STEPS:])


def decoded_per_s(stage: Stage, source: Source) -> float:
    """Training samples that one core reads, decodes and augments in a second; 0 when none could be decoded."""
    cv2.setNumThreads(0)
    samples = SampleDataset(source, stage.data, stage.training.seed, train=True)
    keys = [Key(number, 0, number) for number in range(min(DECODED, len(source)))]
    samples[keys[0]]  # the first one pays for what is set up once
    start = time.perf_counter()
    decoded = sum(not isinstance(samples[key], Bad) for key in keys)
    return decoded / (time.perf_counter() - start)
