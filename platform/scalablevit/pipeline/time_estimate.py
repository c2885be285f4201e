"""Estimate how long a stage will take, from a finished run of the same model and image size on this machine."""

import json
import socket
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.data import CocoInstances
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.stored import stored_stage
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import CONFIG, RESULT, RUNS
from scalablevit.runs.console import format_duration
from scalablevit.runs.result import StageResult
from scalablevit.runs.status import read_status

MAX_RUNS = 50
"""Most finished runs that are looked at, the newest first: older ones ran older code."""
LONG_S = 3600.0
"""Seconds above which a training on CPUs gets a warning."""
FASTEST_CORE = {"float32": 2e11, "bfloat16": 1e12}
"""Operations per second of a CPU core, by precision, that matrix products reach on fast server CPUs."""
USUAL_SHARE = 0.25
"""Fraction of it that a training reaches; measured: 0.3 for ScalableViT-S at 224 pixels in float32 on an AMD EPYC."""
SIZES = ("image_size", "crop_size", "short_side", "long_side", "train_short_sides")
"""Keys of `data` that decide the size of a training image; a warning names the first that the stage has."""


@dataclass(frozen=True)
class TimeEstimate:
    """How long a stage will take."""

    seconds: float
    run: str
    """Name of the run that the estimate is based on."""


def estimate_time(resolved: ResolvedStage, root: Path) -> TimeEstimate | None:
    """Return how long a stage will take, with start and evaluations; None: no such run was found.

    Args:
        resolved: the stage.
        root: the platform's root, whose finished runs are looked at.
    """
    wanted = _what_sets_the_pace(resolved.stage)
    results = sorted((root / RUNS).glob(f"*/{RESULT}"), key=_modified_s, reverse=True)
    for file in results[:MAX_RUNS]:
        try:
            status = read_status(file.parent)
            if status is None or status.host != socket.gethostname():
                continue
            config = file.parent / CONFIG
            stored = stored_stage(json.loads(config.read_bytes())["stage"], str(config))
            if _what_sets_the_pace(stored) == wanted:
                result = StageResult(**json.loads(file.read_bytes()))
                images = result.last_step * stored.training.global_batch_size
                return TimeEstimate(_scale_time(result, images, resolved), result.run_name)
        except (
            OSError,
            UserError,
            ValueError,
            KeyError,
            TypeError,
        ):  # written by an earlier version, half deleted, or damaged
            continue
    return None


def least_seconds(resolved: ResolvedStage, macs_per_pixel: float) -> float:
    """Return a time in seconds below which the steps of a training on CPUs can hardly be.

    Args:
        resolved: the stage.
        macs_per_pixel: multiply-accumulates of the backbone's forward pass; the backward pass takes twice as many.
    """
    stage, data = resolved.stage, resolved.stage.data
    pixels: float = data.training_pixels
    if isinstance(data, CocoInstances):  # those above are of the largest image
        pixels = min(data.train_short_sides or (data.short_side,)) ** 2
    pixels *= resolved.length.work(resolved.length.total) * stage.training.global_batch_size
    return 2 * 3 * macs_per_pixel * pixels / (_cores(stage) * FASTEST_CORE[stage.training.precision])


def long_warning(stage: Stage, estimate: TimeEstimate | None, least_s: float = 0.0) -> list[str]:
    """Name the keys that would shorten a training of more than an hour on CPUs.

    Args:
        stage: the stage.
        estimate: by a run that was measured; None: there is none.
        least_s: of `least_seconds`, which is used where there is no estimate.
    """
    likely_s = estimate.seconds if estimate else least_s / USUAL_SHARE
    if stage.cluster.gpus_per_worker or likely_s <= LONG_S:
        return []
    size = next((key for key in SIZES if getattr(stage.data, key, None)), "")
    length = "epochs" if stage.training.epochs is not None else "steps"
    values = {
        f"training.{length}": getattr(stage.training, length),
        **({f"data.{size}": getattr(stage.data, size)} if size else {}),
        "model.name": stage.model.name,
    }
    keys = ", ".join(f"{key} ({value:g})" if isinstance(value, float) else f"{key} ({value})"
                     for key, value in values.items())  # fmt: skip
    if estimate is not None:
        return [f"more than an hour on this machine's CPUs; what shortens it most: {keys}"]
    rate = FASTEST_CORE[stage.training.precision] / 1e9
    return [
        f"probably more than {format_duration(likely_s)} on {_cores(stage)} CPU cores (the backbone's operations alone "
        f"take {format_duration(least_s)} at {rate:.0f} GFLOP/s a core, of which trainings reach about a quarter); "
        f"what shortens it most: {keys}, or GPUs (cluster.gpus_per_worker)"
    ]


def _cores(stage: Stage) -> int:
    return stage.cluster.workers * max(1, int(stage.cluster.cpus_per_worker))


def _what_sets_the_pace(stage: Stage) -> PlainValues:
    """Return the values of a stage that decide how many images a second it trains."""
    plain = stage.model_dump(mode="json")
    model, data, training, cluster = (plain[section] for section in ("model", "data", "training", "cluster"))
    return {
        "model": {key: model[key] for key in ("name", "options", "grad_checkpointing", "channels_last")},
        "task": {**plain["task"], "test_time_augmentation": None},
        "data": [data["source"], *(data.get(key) for key in SIZES)],
        "training": {key: training[key] for key in ("precision", "compile", "image_size_schedule")},
        "cluster": {key: cluster[key] for key in ("workers", "cpus_per_worker", "gpus_per_worker")},
    }


def _scale_time(result: StageResult, images: int, resolved: ResolvedStage) -> float:
    """Return the seconds of a stage: all but start and lost time grows linearly with the trained images."""
    wanted = resolved.length.total * resolved.stage.training.global_batch_size
    if not result.profile or not images:
        return wanted / result.images_per_s
    # `other` includes attempts that were killed
    start, lost = (result.profile.get(part, 0.0) for part in ("start", "other"))
    return start + (sum(result.profile.values()) - start - lost) * wanted / images


def _modified_s(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # deleted meanwhile
        return 0.0
