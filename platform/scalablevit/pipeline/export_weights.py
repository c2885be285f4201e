"""Export the best checkpoint of a stage as weights for inference, and collect the stage's result."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalablevit.config.errors import UserError
from scalablevit.config.stored import ModelConfig, to_store
from scalablevit.config.task_info import task_info
from scalablevit.config.user_code import package_contents
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import CONFIG, STATE, WEIGHTS
from scalablevit.runs.result import StageResult, without_secrets
from scalablevit.runs.run_store import RunStore

if TYPE_CHECKING:
    from scalablevit.training.attempt_events import Event
    from scalablevit.training.checkpoint import Entry
    from scalablevit.training.state import StateMeta
    from scalablevit.training.worker_result import TrainingEnd, TrainSummary


def export_weights(
    recipe: str,
    resolved: ResolvedStage,
    lineage: dict[str, str],
    store: RunStore,
    uid: str,
    outcome: "TrainingEnd",
    minutes: float,
) -> StageResult:
    """Copy the best checkpoint's weights to `model/` in the run's folder, and return the stage's result.

    Args:
        recipe: name of the recipe.
        resolved: the stage.
        lineage: tags of the weights that it started from, and of the search that found its values.
        store: the run's folder.
        uid: of the run in MLflow.
        outcome: how the training ended.
        minutes: wall time of the attempt that finished.

    Raises:
        UserError: no checkpoint with an evaluation is there, all are damaged, or the best one cannot be read.
    """
    # these load torch and Ray, which `--help` and errors do not need
    from scalablevit.run_files import ATTEMPTS
    from scalablevit.training.attempt_events import read_attempts
    from scalablevit.training.checkpoint import CheckpointStore

    stage = resolved.stage
    metric = task_info(stage.task.kind).best_metric
    last_value = outcome.last_metrics[metric]
    checkpoints = CheckpointStore(store.location)
    best = checkpoints.best(outcome.best_step)
    if best is None or best.value is None:
        raise UserError(
            "no checkpoint of this run carries an evaluation",
            where=checkpoints.folder,
            fix="set training.keep.best to at least 1 and submit again",
        )
    replaced = replaced_best(outcome, best, metric)
    if replaced:
        print(f"[{resolved.name}] {replaced}", flush=True)
    averaged = stage.training.ema_decay is not None
    weights = checkpoints.verified_file(best.name, "ema.safetensors" if averaged else "model.safetensors")
    state: StateMeta = json.loads(checkpoints.verified_file(best.name, STATE))
    metrics = state["last_metrics"]
    # whoever serves or compares the model computes as the evaluation did
    training = stage.training.model_copy(update={"cpu_linear": state.get("cpu_linear", "torch")})
    evaluated = stage.model_copy(update={"training": training})
    config: ModelConfig = {
        "format": 1,
        "stage": to_store(without_secrets(evaluated)),
        "classes": resolved.classes,
        "metrics": metrics,
        "step": best.step,
    }
    if stage.imports:
        contents = package_contents(stage.imports)
        config["user_code"] = {name: content.portable_sum for name, content in contents.items()}
    for file, content in ((WEIGHTS, weights), (CONFIG, json.dumps(config, indent=1).encode())):
        store.write(file, content)
        if store.location != str(store.local):
            RunStore(store.name, str(store.local), store.local).write(file, content)
    return StageResult(
        name=resolved.name,
        run_name=resolved.run_name,
        uid=uid,
        folder=store.location,
        metric=metric,
        value=best.value,
        step=best.step,
        metrics=metrics,
        classes=resolved.classes,
        images_per_s=outcome.step * stage.training.global_batch_size / max(outcome.seconds, 1e-9),
        minutes=minutes,
        reason=": ".join(filter(None, [outcome.reason, "; ".join(filter(None, [outcome.detail, replaced]))])),
        checkpoint=best.name,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        registered_as=stage.tracking.register_as or f"{recipe}-{resolved.name}",
        lineage=lineage,
        last_value=None if math.isnan(last_value) else last_value,
        last_step=outcome.step,
        profile=time_profile(outcome, read_attempts(store.local / ATTEMPTS)[0], time.time()),
        device=outcome.device,
    )


def replaced_best(outcome: "TrainSummary", exported: "Entry", metric: str) -> str:
    """Return a note if the exported checkpoint is not that of the best evaluation; empty if it is.

    Args:
        outcome: of the training; it knows the best evaluation, even if its checkpoint is lost.
        exported: the best of the undamaged checkpoints.
        metric: by which evaluations are compared.
    """
    step, value = outcome.best_step, outcome.best_value
    if step is None or value is None or step == exported.step:
        return ""
    return (
        f"the best checkpoint, of step {step} with {metric} {value:.4f}, is damaged or missing; exported in its place: "
        f"step {exported.step} with {metric} {exported.value:.4f}"
    )


def time_profile(outcome: "TrainSummary", attempts: "Sequence[Event]", end: float) -> dict[str, float]:
    """Return the wall seconds of a stage by part, over all attempts; they add up to the jobs' wall time.

    `start` is from the request for workers, or the loss of the workers before, to their first step: Ray's start of the
    processes and ours in them. `other` is the rest: lost work, ends of jobs, and the time between attempts.

    Args:
        outcome: of the training.
        attempts: events of the run's `attempts.jsonl`.
        end: when the last job was done, seconds since the epoch.
    """
    from scalablevit.training.attempt_events import Lost, StartupTimings, Submitted

    start = wall = 0.0
    submitted: float | None = None
    requested: float | None = None
    for event in attempts:
        match event:
            case Submitted():
                if submitted is not None:  # the job before was killed or failed
                    wall += max(0.0, (event.last or submitted) - submitted)
                submitted = requested = event.time
            case Lost():
                requested = event.time
            case StartupTimings():
                # clocks of two nodes may differ
                start += event.first_step - min(event.entered, event.entered if requested is None else requested)
                requested = None
    if submitted is not None:
        wall += end - submitted
    spent = outcome.spent
    parts = {
        "start": start,
        "data": spent["data"],
        "step": outcome.seconds - spent["data"] - spent["checkpoint"],
        "evaluation": spent["evaluation"],
        "checkpoint": spent["checkpoint"],
    }
    return {**parts, "other": max(0.0, wall - sum(parts.values()))}
