"""The result of a rank, and its form for the way to the driver."""

from dataclasses import asdict, dataclass, field
from typing import Any

from scalablevit.config.errors import UserError


@dataclass(frozen=True)
class TrainSummary:
    """The counters and metrics of a run that people need; checkpoints contain them, too."""

    step: int
    """Optimizer steps done."""
    best_value: float | None
    """Score of the best evaluation, higher is better; None before the first."""
    best_step: int | None
    """Optimizer steps done at the best evaluation."""
    best_metrics: dict[str, float]
    """Metrics of the best evaluation."""
    last_metrics: dict[str, float]
    """Metrics of the last evaluation."""
    seconds: float
    """Wall time of training in seconds, over all attempts."""
    spent: dict[str, float]
    """Wall time in seconds by part; see `TrainState.spent`."""


@dataclass(frozen=True)
class TrainingEnd(TrainSummary):
    """How training ended, and the counters and metrics at that time."""

    reason: str
    """A `loop.StopReason`."""
    detail: str
    """More about it, for people; may be empty."""
    device: str
    """Name of rank 0's GPU or CPU."""


@dataclass(frozen=True)
class WorkerResult:
    """The result of a rank; at most one of `training`, `metrics` and `error` is set."""

    training: TrainingEnd | None = None
    """How training ended, on rank 0 of a stage that was trained."""
    metrics: dict[str, float] | None = None
    """Metrics, on all ranks, of weights that were only evaluated."""
    error: UserError | None = None
    """The error, on all ranks, that the user must fix."""
    nondeterministic: list[str] = field(default_factory=list)
    """Torch's warnings about operations without a deterministic implementation, under `training.deterministic`."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, since another process reads what a Ray Train worker returns."""
        training, error = self.training, self.error
        return {
            "training": None if training is None else asdict(training),
            "metrics": self.metrics,
            "error": None if error is None else [error.what, error.where, error.fix],
            "nondeterministic": self.nondeterministic,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WorkerResult":
        """Return the result from the values that `as_dict` returned."""
        training, error = values["training"], None
        if values["error"] is not None:
            what, where, fix = values["error"]
            error = UserError(what, where=where, fix=fix)
        ended = None if training is None else TrainingEnd(**training)
        return cls(ended, values["metrics"], error, values["nondeterministic"])
