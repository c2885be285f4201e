"""Plots in a run's folder, drawn by the driver while the workers run; one that fails is reported and stops nothing."""

import json
import threading
from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from scalablevit.config.stored import stored_stage
from scalablevit.config.task_info import task_info
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import CONFIG, CURVES, ERROR_ANALYSIS, TRAINING_BATCH, VALIDATION, WEIGHTS
from scalablevit.runs.metrics import metrics_by_step
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import format_error

if TYPE_CHECKING:
    from torch import nn

    from scalablevit.data.sources.base import Source
    from scalablevit.tasks.task import Task


def begin_training_batch(resolved: ResolvedStage, store: RunStore) -> threading.Thread:
    """Draw the images of step 1 as the model gets them, in a thread that is returned; only once in a run's life.

    Args:
        resolved: the stage.
        store: the run's folder.
    """

    def draw() -> None:
        if target.exists():
            return
        from scalablevit.pipeline.sample_plots import save_training_batch
        from scalablevit.tasks.registry import build_task

        task = build_task(resolved.stage, resolved.classes)
        save_training_batch(task, resolved.stage, resolved.sources["train"], target)

    target = store.local / TRAINING_BATCH
    thread = threading.Thread(target=_attempt, args=(resolved, TRAINING_BATCH, draw), name="pictures", daemon=True)
    thread.start()
    return thread


def draw_curves(resolved: ResolvedStage, store: RunStore, uid: str) -> None:
    """Draw curves of the run's metrics so far.

    Args:
        resolved: the stage.
        store: the run's folder, with its outbox.
        uid: of the run in MLflow.
    """

    def draw() -> None:
        from scalablevit.viz.curves import save_curves

        rows = metrics_by_step(store.outbox, uid)
        save_curves(rows, task_info(resolved.stage.task.kind).best_metric, store.local / CURVES)

    _attempt(resolved, CURVES, draw)


def draw_validation(resolved: ResolvedStage, store: RunStore) -> None:
    """Draw validation images with ground truth and the best weights' prediction, and run the error analysis.

    Args:
        resolved: the stage, which has finished.
        store: the run's folder, with the weights.
    """
    finished = cache(partial(_load_finished, resolved, store))

    def draw() -> None:
        from scalablevit.pipeline.sample_plots import save_predictions

        task, model, source = finished()
        save_predictions(task, resolved.stage, model, source, store.local / VALIDATION)

    def look() -> None:
        from scalablevit.pipeline.error_analysis import analyse_errors

        task, model, source = finished()
        analyse_errors(task, resolved.stage, model, source, store.local / ERROR_ANALYSIS)

    _attempt(resolved, VALIDATION, draw)
    _attempt(resolved, ERROR_ANALYSIS, look)


def _load_finished(resolved: ResolvedStage, store: RunStore) -> "tuple[Task, nn.Module, Source]":
    """Return the task, the network with the best weights, and the validation split."""
    import safetensors.torch

    from scalablevit.models.cpu_linear import evaluated_library, use_library
    from scalablevit.tasks.registry import build_task

    task = build_task(resolved.stage, resolved.classes)
    model = task.build_model()
    model.load_state_dict(safetensors.torch.load_file(store.local / WEIGHTS))
    config = json.loads((store.local / CONFIG).read_bytes())
    use_library(model, evaluated_library(stored_stage(config["stage"], str(store.local / CONFIG))))
    return task, model, resolved.sources["val"]


def _attempt(resolved: ResolvedStage, what: str, draw: Callable[[], None]) -> None:
    """Draw; if that fails, print why and return."""
    try:
        draw()
    except Exception as error:  # a training must not fail because of a plot
        print(f"[{resolved.name}] {what} was not drawn: {format_error(error, '')}", flush=True)
