"""What a rank hands back when it is done, and how that travels to the driver."""

from dataclasses import asdict, dataclass, field
from typing import Any

from scalablevit.config.errors import UserError


@dataclass(frozen=True)
class TrainSummary:
    """The counters and metrics of a run that people ask for; checkpoints hold them, too."""

    step: int
    """Optimizer steps done."""
    best_value: float | None
    """Of the best evaluation; None before the first."""
    best_step: int | None
    best_metrics: dict[str, float]
    """Result of the best evaluation."""
    last_metrics: dict[str, float]
    """Result of the last evaluation."""
    seconds: float
    """Wall time spent training, over all attempts."""
    spent: dict[str, float]
    """Of it, seconds by part; see `TrainState.spent`."""


@dataclass(frozen=True)
class TrainingEnd(TrainSummary):
    """How training ended, and what the run had come to by then."""

    reason: str
    """A `loop.StopReason`."""
    detail: str
    """More about it, for people; may be empty."""
    device: str = ""
    """Name of rank 0's GPU or CPU."""


@dataclass(frozen=True)
class WorkerResult:
    """What a rank hands back; of the first three at most one is there."""

    training: TrainingEnd | None = None
    """On rank 0, of a stage that was trained."""
    metrics: dict[str, float] | None = None
    """On each rank, of weights that were only evaluated."""
    error: UserError | None = None
    """On each rank, when the user must act."""
    nondeterministic: list[str] = field(default_factory=list)
    """What torch said, under training.deterministic, of operations that have no deterministic implementation."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values: what a Ray Train worker returns is read in another process."""
        training, error = self.training, self.error
        return {
            "training": None if training is None else asdict(training),
            "metrics": self.metrics,
            "error": None if error is None else [error.what, error.where, error.fix],
            "nondeterministic": self.nondeterministic,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "WorkerResult":
        """Return the result that `as_dict` was called on."""
        training, error = values["training"], None
        if values["error"] is not None:
            what, where, fix = values["error"]
            error = UserError(what, where=where, fix=fix)
        ended = None if training is None else TrainingEnd(**training)
        return cls(ended, values["metrics"], error, values["nondeterministic"])
