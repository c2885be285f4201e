"""What a finished stage leaves in its run folder: `result.json`."""

from dataclasses import dataclass, field

from scalablevit.config.recipe import Stage
from scalablevit.run_files import RESULT
from scalablevit.runs.run_store import RunStore


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
    last_value: float | None = None
    """Of the last evaluation; None: not a number. Results of earlier versions lack this and the next two."""
    last_step: int = 0
    profile: dict[str, float] = field(default_factory=dict)
    """Wall seconds by part (`pipeline.export_weights.time_profile`)."""
    device: str = ""
    """Name of rank 0's GPU or CPU in the attempt that finished; empty in results of earlier versions."""
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
