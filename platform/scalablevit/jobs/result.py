"""What a finished stage leaves behind: weights for inference, apart from resumable state, and `result.json`."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.jobs.resolve import ResolvedStage
from scalablevit.jobs.run_store import RunStore

RESULT = "result.json"
WEIGHTS = "model/weights.safetensors"
CONFIG = "model/config.json"
BEST_METRIC = {"classification": "val/top1", "segmentation": "val/miou", "detection": "val/box_ap"}
"""Each task's `best_metric`, known here without importing torch; a test compares."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage; all but the last three fields are kept in `result.json`."""

    name: str
    run_name: str
    uid: str
    folder: str
    metric: str
    value: float
    step: int
    metrics: dict[str, float]
    classes: tuple[str, ...]
    images_per_s: float
    minutes: float
    """Wall time of the attempt that finished."""
    reason: str
    checkpoint: str
    """Folder of the best checkpoint."""
    weights_sha256: str
    registered_as: str
    lineage: dict[str, str]
    """Tags of the weights that it started from, and of the search that found its values."""
    skipped: bool = False
    version: str = ""
    """Registered version; empty while MLflow has not taken it."""
    tracking: str = ""
    """One line on what tracking still owes."""

    def save(self, store: RunStore) -> None:
        """Write `result.json`: from now on the stage is finished."""
        kept = {k: v for k, v in vars(self).items() if k not in ("skipped", "version", "tracking")}
        store.write_json(RESULT, kept)


def load_result(store: RunStore) -> StageResult | None:
    """The result of a finished stage; None when it has not finished."""
    found = store.read_json(RESULT)
    return None if found is None else StageResult(**{**found, "classes": tuple(found["classes"]), "skipped": True})


def without_secrets(stage: Stage) -> Stage:
    """The stage without the tracking address, which may hold a password: what may be written down."""
    return stage.model_copy(update={"tracking": stage.tracking.model_copy(update={"uri": None})})


def export(
    recipe: str,
    resolved: ResolvedStage,
    lineage: dict[str, str],
    store: RunStore,
    uid: str,
    outcome: dict[str, Any],
    minutes: float,
) -> StageResult:
    """Copy the best checkpoint's weights to `model/` and say what came out.

    Raises:
        UserError: no checkpoint with an evaluation is there, or all are damaged.
    """
    from scalablevit.training.checkpoint import CheckpointStore  # loads torch, which `--help` and errors do not need

    stage = resolved.stage
    checkpoints = CheckpointStore(store.location)
    best = checkpoints.best()
    if best is None or best.value is None:
        raise UserError(
            "no checkpoint of this run carries an evaluation",
            where=checkpoints.folder,
            fix="set training.keep.best to at least 1 and submit again",
        )
    averaged = stage.training.ema_decay is not None
    weights = checkpoints.verified_file(best.name, "ema.safetensors" if averaged else "model.safetensors")
    metrics = json.loads(checkpoints.verified_file(best.name, "state.json"))["last_metrics"]
    config = {
        "format": 1,
        "stage": without_secrets(stage).model_dump(mode="json"),
        "classes": resolved.classes,
        "metrics": metrics,
        "step": best.step,
    }
    for file, content in ((WEIGHTS, weights), (CONFIG, json.dumps(config, indent=1).encode())):
        store.write(file, content)
        if store.location != str(store.local):
            RunStore(store.name, str(store.local), store.local).write(file, content)
    return StageResult(
        name=resolved.name,
        run_name=resolved.run_name,
        uid=uid,
        folder=store.location,
        metric=BEST_METRIC[stage.task.kind],
        value=best.value,
        step=best.step,
        metrics=metrics,
        classes=resolved.classes,
        images_per_s=outcome["step"] * stage.training.global_batch / max(outcome["seconds"], 1e-9),
        minutes=minutes,
        reason=outcome["reason"] + (f": {outcome['detail']}" if outcome["detail"] else ""),
        checkpoint=best.name,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        registered_as=stage.tracking.register_as or f"{recipe}-{resolved.name}",
        lineage=lineage,
    )
