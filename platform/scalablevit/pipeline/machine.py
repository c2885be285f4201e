"""Warnings about what a recipe asks for and this machine lacks, before anything starts."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from scalablevit.pipeline.cluster import local_resources, unused_gpus
from scalablevit.pipeline.node_checks import driver_gpus
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.training.room import least_workers

PROCESS_BYTES = 1.2 * 2**30
"""Memory of a worker with torch and its libraries, before it trains, in bytes; measured on a CPU."""
IMAGE_BYTES_A_PIXEL = 10_000
"""Rough bytes, for each pixel of an image, of its activations in training; if they fit, memory is not counted, which
takes seconds."""


def machine_warnings(stages: Sequence[ResolvedStage]) -> list[str]:
    """Return what stages ask for and this machine lacks (cores, GPUs, memory); nothing if RAY_ADDRESS is set."""
    if os.environ.get("RAY_ADDRESS"):
        return []
    # counting GPUs loads Ray, which takes a second
    available = local_resources(gpus=any(resolved.stage.cluster.gpus_per_worker for resolved in stages))
    memory = _available_bytes()
    warnings = unused_gpus(stages, driver_gpus(), "this machine")
    for resolved in stages:
        cluster, workers = resolved.stage.cluster, least_workers(resolved.stage)
        for kind, per_worker in (("GPU", cluster.gpus_per_worker), ("CPU core", cluster.cpus_per_worker)):
            have = available["GPU" if kind == "GPU" else "CPU"]
            if workers * per_worker > have:
                warnings.append(
                    f"stage {resolved.name} asks for {workers} workers x {per_worker:g} {kind}s = "
                    f"{workers * per_worker:g}, and this machine has {have:g}: it starts on a cluster only, or with "
                    "other cluster.workers and "
                    f"cluster.{'gpus' if kind == 'GPU' else 'cpus'}_per_worker"
                )
        if memory and not cluster.gpus_per_worker and (needed := _needed_bytes(resolved, memory)) > memory:
            warnings.append(
                f"stage {resolved.name} takes about {needed / 2**30:.3g} GiB of memory in {cluster.workers} workers, "
                f"and {memory / 2**30:.3g} GiB are free on this machine: lower training.global_batch_size, raise "
                "training.accumulation_steps, or take smaller images"
            )
    return warnings


def _needed_bytes(resolved: ResolvedStage, available: float) -> float:
    """Return the bytes of memory of a stage's workers; counted only where a rough upper bound does not fit."""
    stage, workers = resolved.stage, resolved.stage.cluster.workers
    images = math.ceil(stage.training.global_batch_size / workers / stage.training.accumulation_steps)
    bound = workers * (PROCESS_BYTES + images * stage.data.training_pixels * IMAGE_BYTES_A_PIXEL)
    if bound <= available:
        return bound
    from scalablevit.tasks.registry import build_task
    from scalablevit.training.memory_estimate import estimate_memory

    return workers * (PROCESS_BYTES + estimate_memory(stage, build_task(stage, resolved.classes), images).total)


def _available_bytes() -> float:
    """Return the bytes of memory that programs can still take; 0 where the system does not tell."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return 0.0
    match = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return float(match[1]) * 1024 if match else 0.0
