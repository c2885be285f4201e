"""What a finished stage leaves in its run folder: `result.json`."""

import math
from dataclasses import dataclass, field, fields

from scalablevit.config.recipe import Stage
from scalablevit.run_files import RESULT
from scalablevit.runs.run_store import RunStore

USELESS = 0.01
"""Largest mIoU and box AP of a model that has learned next to nothing."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage; `result.json` keeps all fields but `skipped`, `version` and `tracking`."""

    name: str
    """The stage's name."""
    run_name: str
    uid: str
    """Our uid of the run."""
    folder: str
    """The run's folder in run storage, path or address."""
    metric: str
    """Name of the metric that decides which evaluation is best."""
    value: float
    """The metric of the exported checkpoint: the best one that is stored and undamaged."""
    step: int
    """Optimizer steps done at that checkpoint."""
    metrics: dict[str, float]
    """All metrics of that checkpoint's evaluation."""
    classes: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    images_per_s: float
    """Training images a second of all ranks together, on average over all attempts, without evaluations."""
    minutes: float
    """Wall time in minutes of the attempt that finished."""
    reason: str
    """Why training ended, for people."""
    checkpoint: str
    """Name of the exported checkpoint's folder."""
    weights_sha256: str
    registered_as: str
    """Name of the registered model."""
    lineage: dict[str, str]
    """MLflow tags about the weights that training started from, and the search that found its values."""
    last_value: float | None = None
    """The metric of the last evaluation; None: not a number. Files of earlier versions lack this and the next two."""
    last_step: int = 0
    """Optimizer steps done at the last evaluation."""
    profile: dict[str, float] = field(default_factory=dict)
    """Wall time in seconds by part (`pipeline.export_weights.time_profile`)."""
    device: str = ""
    """Name of rank 0's GPU or CPU in the attempt that finished; empty in files of earlier versions."""
    skipped: bool = False
    """Whether the stage was already finished when the job began."""
    version: str = ""
    """Registered version; empty while MLflow has not taken it."""
    tracking: str = ""
    """One line on the records that MLflow does not have yet."""

    def save(self, store: RunStore) -> None:
        """Write `result.json`: from now on the stage is finished."""
        kept = {k: v for k, v in vars(self).items() if k not in ("skipped", "version", "tracking")}
        store.write_json(RESULT, kept)


def load_result(store: RunStore) -> StageResult | None:
    """Return the result of a finished stage; None when it has not finished."""
    stored = store.read_json(RESULT)
    if stored is None:
        return None
    known = {field.name for field in fields(StageResult)}  # a later version may have written more
    values = {name: value for name, value in stored.items() if name in known}
    return StageResult(**{**values, "classes": tuple(stored["classes"]), "skipped": True})


def useless_note(metric: str, value: float, classes: int) -> str:
    """Return a sentence on a best metric that shows that nothing was learned; empty where it may be of use.

    Args:
        metric: reported name; of users' own tasks nothing is known.
        value: of the metric.
        classes: number of the model's classes.
    """
    chance = {"val/top1": 1 / max(classes, 2), "val/miou": USELESS, "val/box_ap": USELESS}.get(metric, -math.inf)
    if not value <= chance:  # also not a number
        return ""
    return (
        f"{metric.removeprefix('val/')} {value:.4f} is no better than chance: the model has learned next to nothing; "
        "it takes more images, trained weights to start from (model.init), or a longer training"
    )


def without_secrets(stage: Stage) -> Stage:
    """Return the stage without the tracking address, which may hold a password: this copy may be stored."""
    return stage.model_copy(update={"tracking": stage.tracking.model_copy(update={"uri": None})})
