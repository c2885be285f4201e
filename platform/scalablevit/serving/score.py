"""Scores a trained network on a validation split, image by image, and measures the latency of a prediction."""

import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scalablevit.config.user_code import stage_from_json
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.decoding import BadSample, mean_color, read_image
from scalablevit.data.loader import build_loader, prefetch
from scalablevit.data.sampler import eval_batches
from scalablevit.data.sources.base import Source
from scalablevit.serving.network import TrainedNetwork, load_trained
from scalablevit.serving.threads import limit_threads, other_load
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.sample_statistics import SampleStatistics
from scalablevit.training.collectives import end_with_changed_files
from scalablevit.training.data_listing import open_stored
from scalablevit.training.device_name import device_name

WARM_UP, TIMED = 3, 20
"""Number of predictions before the measurement, and of those whose median time is the latency."""


@dataclass(frozen=True)
class Score:
    """The metric of one model by image, and its latency."""

    per_sample: SampleStatistics
    """What each image adds to the metric."""
    bad: int
    """Number of samples that could not be decoded and are not in `per_sample`."""
    latency_ms: float
    """Median over `TIMED` predictions in milliseconds, one image at a time, from decoded pixels to the prediction as
    plain values; nan when no image could be decoded."""
    measured_on: str
    """Device and number of threads that `latency_ms` was measured on, in words."""
    busy: str = ""
    """One line on what else ran on the machine meanwhile; empty when a core was free for each thread."""


def score(
    stage_json: str, classes: Sequence[str], weights: str, root: str, metric: str, latency_threads: int, listing: str
) -> Score:
    """Return the score on the stage's validation split, each image once and in order, in the precision of serving.

    Args:
        stage_json: the stage as JSON; its data section names the data.
        classes: class names, in the order of the network's outputs.
        weights: file of the weights, whose SHA-256 is already checked.
        root: the platform's root folder.
        metric: name of the metric, as in the recipe's `promotion.metric`.
        latency_threads: torch's threads while the latency is measured on a CPU.
        listing: folder of the run that stored the split's listing (`training.data_listing`).

    Raises:
        UserError: files have changed since they were listed.
    """
    stage = stage_from_json(stage_json)
    trained = load_trained(stage, classes, weights)
    source = open_stored(stage.data, "val", Path(root), listing).with_classes(classes)
    per_sample = task_kind(stage.task.kind).build_sample_statistics(metric, classes)
    bad = _add_all(trained, source, per_sample)
    latency, busy = _latency_ms(trained, source, latency_threads) if per_sample.indices else (math.nan, "")
    return Score(per_sample, bad, latency, _measured_on(trained.device, latency_threads), busy)


@torch.inference_mode()
def _add_all(trained: TrainedNetwork, source: Source, per_sample: SampleStatistics) -> int:
    """Add every image to the statistics; return how many could not be decoded."""
    task, stage = trained.task, trained.stage
    size = max(1, stage.training.global_batch_size // (stage.cluster.workers * stage.training.accumulation_steps))
    loader = build_loader(
        SampleDataset(source, stage.data, stage.training.seed, train=False),
        eval_batches(len(source), 0, 1, size),
        task.collate("val"),
        workers=stage.cluster.loader_workers,
        device=trained.device,
    )
    bad = 0
    for batch in prefetch(loader, trained.device):
        if batch.changed:
            end_with_changed_files(batch.changed)
        bad += len(batch.bad)
        if batch.samples:
            prepared = task.prepare(batch, "val", ())
            with limit_threads():
                prediction = task.predict(trained.network, prepared)
            per_sample.update(prediction, prepared)
    return bad


@torch.inference_mode()
def _latency_ms(trained: TrainedNetwork, source: Source, threads: int) -> tuple[float, str]:
    """Return the latency in ms on the first image that can be decoded, and a line on what kept the machine busy."""
    data = trained.stage.data
    for sample in source:
        try:
            image = read_image(sample.image, data.max_pixels, mean_color(data.mean))
            break
        except BadSample:
            continue
    seconds, loads = [], []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for index in range(WARM_UP + TIMED):
            started = time.perf_counter()
            trained.predict(image).to_dict()
            if index >= WARM_UP:
                seconds.append(time.perf_counter() - started)
                loads.append(other_load())
    finally:
        torch.set_num_threads(before)
    return 1000 * statistics.median(seconds), _describe_busy(
        statistics.mean(loads), threads, len(os.sched_getaffinity(0))
    )


def _describe_busy(load: float, threads: int, cores: int) -> str:
    """Return one line about a machine without a free core for each of our threads; else an empty text."""
    if load + threads <= cores:
        return ""
    return f"the machine was busy: a load of {load:.1f} from others on {cores} cores, so latency may be too long"


def _measured_on(device: torch.device, threads: int) -> str:
    threads_used = "" if device.type == "cuda" else f", {threads} thread{'s' * (threads > 1)}"
    return device_name(device) + threads_used
