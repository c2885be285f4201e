"""Everything that changes during training, and its conversion to tensors and JSON and back."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NotRequired, TypedDict

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from scalablevit.data.batch import Batch
from scalablevit.models.cpu_linear import CpuLinear
from scalablevit.tracking.records import StepMetrics
from scalablevit.training.worker_result import TrainSummary

Tensors = dict[str, Tensor]

SPENT = ("data", "checkpoint", "evaluation")
"""Parts of the wall time that `TrainState.spent` counts."""
RECALL_MS = 60_000
"""Age in milliseconds at which a record has surely left this process: Ray's controller takes less than a second."""


@dataclass(frozen=True)
class Record:
    """Metrics of one step on their way to tracking."""

    step: int
    """Optimizer steps done."""
    time_ms: int
    """Milliseconds since the epoch."""
    metrics: Mapping[str, float]
    """Value by name, such as `train/loss`."""
    roll_backs: int = 0
    """Number of roll-backs before it."""

    def as_dict(self) -> StepMetrics:
        """Return plain values for JSON."""
        values: StepMetrics = {"step": self.step, "time_ms": self.time_ms, "metrics": self.metrics}
        if self.roll_backs:
            values["roll_backs"] = self.roll_backs
        return values


class StateMeta(TypedDict):
    """The part of a state that is no tensor, as in a checkpoint's `state.json`; see `TrainState` and `TrainSummary`.

    Fields that may be missing are those that earlier versions did not write.
    """

    step: int
    best_value: float | None
    best_step: int | None
    best_metrics: dict[str, float]
    last_metrics: dict[str, float]
    seconds: float
    spent: NotRequired[dict[str, float]]
    evaluations_without_gain: int
    gain_value: float | None
    bad_samples: int
    cpu_linear: NotRequired[CpuLinear]
    passed_over: NotRequired[int]
    roll_backs: NotRequired[int]
    skipped: NotRequired[int]
    skipped_in_row: NotRequired[int]
    running: dict[str, float]
    """Sums of the `MetricAccumulator` by name."""
    running_steps: int
    history: list[StepMetrics]


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the CPU: the content of a checkpoint."""

    step: int
    files: dict[str, Tensors]
    """Tensors by file stem: `model`, `optimizer` and, when on, `ema`."""
    meta: StateMeta

    def without_past(self) -> "Snapshot":
        """Return weights, optimizer and counters of steps for another run: without records and evaluations so far."""
        meta: StateMeta = {
            **self.meta,
            "best_value": None,
            "best_step": None,
            "best_metrics": {},
            "last_metrics": {},
            "evaluations_without_gain": 0,
            "gain_value": None,
            "running": {},
            "running_steps": 0,
            "history": [],
        }
        return replace(self, meta=meta)


@dataclass
class MetricAccumulator:
    """Sums of metrics since the last log point, on the device so that adding needs no synchronization."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum by metric, float64 scalars."""
    steps: int = 0
    """Number of steps in the sums."""
    bad: int = 0
    """Number of undecodable samples that this rank has found and the state has not yet counted."""

    def add(self, values: dict[str, Tensor] | None, bad: int) -> None:
        """Add one step's scalars (None: the step was skipped) and its number of undecodable samples."""
        self.bad += bad
        if values is None:
            return
        for name, value in values.items():
            total = self.sums.get(name)
            self.sums[name] = value.detach().double() if total is None else total + value.detach()
        self.steps += 1


@dataclass
class TrainState:
    """Model, averaged model, optimizer and counters of one run; changed in place by the loop."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None = None
    """The averaged model; None: the recipe asks for no average."""
    cpu_linear: CpuLinear = "torch"
    """The library that computes the linear layers on a CPU."""
    step: int = 0
    """Optimizer steps done."""
    passed_over: int = 0
    """Number of steps whose samples roll-backs skipped."""
    roll_backs: int = 0
    """Number of times that training went back to a checkpoint after a step that was not finite."""
    skipped: int = 0
    """Number of steps without an update because they were not finite; they count as done."""
    skipped_in_row: int = 0
    """Number of the latest of these without a finite step between them."""
    best_value: float | None = None
    """Score of the best evaluation, higher is better; None before the first."""
    best_step: int | None = None
    """Optimizer steps done at the best evaluation."""
    evaluations_without_gain: int = 0
    """Number of evaluations since the last one that counted as a gain for early stopping."""
    gain_value: float | None = None
    """Score of the last evaluation that counted as a gain for early stopping."""
    bad_samples: int = 0
    """Number of undecodable samples found so far, on all ranks."""
    bad_named: int = 0
    """Number of those among `bad_samples` whose files all ranks know."""
    bad_files: dict[str, str] = field(default_factory=dict)
    """Reason by path of the undecodable files found in this attempt: this rank's, and the others' once exchanged."""
    changed_files: set[str] = field(default_factory=set)
    """Files that have changed since the run began, as far as this rank has found them."""
    save_failed: bool = False
    """Whether, at the last log point, a rank's last checkpoint could not be written."""
    seconds: float = 0.0
    """Wall time of training in seconds, over all attempts."""
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    """Wall time in seconds by part. `seconds` includes the waiting for data and the copying of checkpoints, but not the
    evaluations. Measured without synchronization: a device may have computed steps meanwhile."""
    running: MetricAccumulator = field(default_factory=MetricAccumulator)
    history: list[Record] = field(default_factory=list)
    """Records that the controller may not have written yet; checkpoints contain them, too."""
    forget_before_ms: int = 0
    """Records before this time, in milliseconds since the epoch, are dropped after the next checkpoint: two checkpoints
    then have them, and they left this process at least `RECALL_MS` ago."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the best evaluation."""

    @property
    def evaluated(self) -> nn.Module:
        """Return the model that is evaluated and registered: the averaged one if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def position(self) -> int:
        """Return the position of the next step in the stream of samples, in steps; random numbers depend on it, too."""
        return self.step + self.passed_over

    def update_ema(self) -> None:
        """Update the averaged model with the weights of the step just done.

        Under warm-up the decay follows from `step` alone (timm counts steps from 1 and the decay's t from 0), so that
        a resumed run needs no other state.
        """
        if self.ema is not None:
            self.ema.update(self.model, self.step if self.ema.use_warmup else None)

    def skip_step(self) -> None:
        """Count a step without an update as done."""
        self.step += 1
        self.skipped += 1
        self.skipped_in_row += 1

    def skip_samples_to(self, position: int, roll_backs: int) -> None:
        """Continue, after a roll-back, with the samples after those of the step at a position.

        Args:
            position: position of the step, in steps of the stream of samples.
            roll_backs: number of roll-backs so far.
        """
        self.passed_over = position + 1 - self.step
        self.roll_backs = roll_backs
        self.skipped_in_row = 0

    def add_step(self, metrics: dict[str, Tensor] | None, micro_batches: list[Batch]) -> None:
        """Add a step's scalars (None: skipped), and the samples that could not be used in this rank's batches."""
        if metrics is not None:
            self.skipped_in_row = 0
        self.running.add(metrics, sum(len(batch.bad) for batch in micro_batches))
        for batch in micro_batches:
            self.bad_files.update(batch.bad)
            self.changed_files.update(batch.changed)

    def add_evaluation(self, metrics: dict[str, float], value: float, min_delta: float = 0.0) -> bool:
        """Add an evaluation, and return whether it is the best so far; one with a score of NaN never is.

        Args:
            metrics: the evaluation's metrics.
            value: its score, higher is better.
            min_delta: an evaluation counts as a gain when its score exceeds that of the last gain by more than this, so
                that many small improvements add up.
        """
        self.last_metrics = metrics
        if value == value and (self.gain_value is None or value > self.gain_value + min_delta):
            self.gain_value = value
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
        if value == value and (self.best_value is None or value > self.best_value):
            self.best_value, self.best_step, self.best_metrics = value, self.step, metrics
            return True
        return False

    def forget_old_records(self) -> None:
        """Drop, after a checkpoint, old records that the previous checkpoint already had; see `forget_before_ms`."""
        self.history = [record for record in self.history if record.time_ms >= self.forget_before_ms]
        if self.history:
            self.forget_before_ms = self.history[-1].time_ms - RECALL_MS

    def summary(self) -> TrainSummary:
        """Return the counters and metrics that people ask for."""
        return TrainSummary(
            step=self.step,
            best_value=self.best_value,
            best_step=self.best_step,
            best_metrics=self.best_metrics,
            last_metrics=self.last_metrics,
            seconds=self.seconds,
            spent=dict(self.spent),
        )

    def bytes_by_file(self) -> dict[str, int]:
        """Return the bytes of a snapshot's tensors by file stem, with the moments that the first step creates."""
        moments = (
            _moment_bytes(self.optimizer, group.get("momentum", 0.0), parameter)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )
        sizes = {"model": _weight_bytes(self.model), "optimizer": sum(moments)}
        return sizes if self.ema is None else {**sizes, "ema": _weight_bytes(self.ema.module)}

    def snapshot_bytes(self) -> int:
        """Return the bytes of all of a snapshot's tensors; see `bytes_by_file`."""
        return sum(self.bytes_by_file().values())

    def snapshot(self) -> Snapshot:
        """Return a copy of the state on the CPU; the loop may continue at once."""
        files = {"model": _to_cpu(self.model.state_dict()), "optimizer": _to_cpu(self._optimizer_tensors())}
        if self.ema is not None:
            files["ema"] = _to_cpu(self.ema.module.state_dict())
        meta: StateMeta = {
            "step": self.step,
            "best_value": self.best_value,
            "best_step": self.best_step,
            "best_metrics": self.best_metrics,
            "last_metrics": self.last_metrics,
            "seconds": self.seconds,
            "spent": dict(self.spent),
            "evaluations_without_gain": self.evaluations_without_gain,
            "gain_value": self.gain_value,
            "bad_samples": self.bad_samples,
            "cpu_linear": self.cpu_linear,
            "passed_over": self.passed_over,
            "roll_backs": self.roll_backs,
            "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row,
            "running": {name: total.item() for name, total in self.running.sums.items()},
            "running_steps": self.running.steps,
            "history": [record.as_dict() for record in self.history],
        }
        return Snapshot(self.step, files, meta)

    def restore(self, snapshot: Snapshot) -> None:
        """Restore a snapshot exactly; keys and shapes must agree.

        Raises:
            RuntimeError: the snapshot belongs to another model or optimizer.
        """
        self.model.load_state_dict(snapshot.files["model"])
        if (self.ema is None) != ("ema" not in snapshot.files):
            raise RuntimeError("the checkpoint and the recipe disagree about training.ema_decay")
        if self.ema is not None:
            self.ema.module.load_state_dict(snapshot.files["ema"])
        self._restore_optimizer(snapshot.files["optimizer"])
        meta = copy.deepcopy(snapshot.meta)
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.spent |= meta.get("spent", {})  # missing in earlier versions
        self.best_value, self.best_step = meta["best_value"], meta["best_step"]
        self.best_metrics, self.last_metrics = meta["best_metrics"], meta["last_metrics"]
        self.evaluations_without_gain = meta["evaluations_without_gain"]
        self.gain_value = meta["gain_value"]
        self.bad_samples = self.bad_named = meta["bad_samples"]  # files are named before each save
        self.passed_over, self.roll_backs = meta.get("passed_over", 0), meta.get("roll_backs", 0)
        self.skipped, self.skipped_in_row = meta.get("skipped", 0), meta.get("skipped_in_row", 0)
        device = next(self.model.parameters()).device
        sums = {k: torch.tensor(v, dtype=torch.float64, device=device) for k, v in meta["running"].items()}
        self.running = MetricAccumulator(sums, meta["running_steps"])
        self.history = [Record(**record) for record in meta["history"]]

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trainable parameters with their names, in the order in which the optimizer numbers them."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [(names[id(p)], p) for group in self.optimizer.param_groups for p in group["params"]]

    def _optimizer_tensors(self) -> Tensors:
        return {
            f"{name}/{key}": value
            for name, parameter in self._named_parameters()
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def _restore_optimizer(self, tensors: Tensors) -> None:
        indices = {name: index for index, (name, _) in enumerate(self._named_parameters())}
        states: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition("/")
            if name not in indices:
                raise RuntimeError(f"the checkpoint's optimizer holds {name!r}, which this model does not train")
            states.setdefault(indices[name], {})[key] = tensor
        # torch's own loading converts tensors to the device and type that this optimizer needs
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weight_bytes(model: nn.Module) -> int:
    return sum(_nbytes(tensor) for tensor in model.state_dict().values() if isinstance(tensor, Tensor))


def _moment_bytes(optimizer: torch.optim.Optimizer, momentum: float, parameter: nn.Parameter) -> int:
    """Return the bytes of a parameter's optimizer state: AdamW two moments and a float32 step, SGD a momentum."""
    if isinstance(optimizer, torch.optim.AdamW):
        return 2 * _nbytes(parameter) + torch.float32.itemsize
    return _nbytes(parameter) if momentum else 0


def _to_cpu(tensors: Tensors) -> Tensors:
    """Return contiguous copies on the CPU: safetensors refuses channels-last and shared memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items() if isinstance(v, Tensor)}
