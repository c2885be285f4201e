"""Everything that moves during training, and how it becomes tensors and JSON and back."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from scalablevit.data.batch import Batch
from scalablevit.tracking.records import StepMetrics
from scalablevit.training.worker_result import TrainSummary

Tensors = dict[str, Tensor]

SPENT = ("data", "checkpoint", "evaluation")
RECALL_MS = 60_000
"""Ray's controller takes a report within a fraction of a second; a minute is ample."""


@dataclass(frozen=True)
class Record:
    """Metrics of one step on their way to tracking."""

    step: int
    time_ms: int
    metrics: Mapping[str, float]

    def as_dict(self) -> StepMetrics:
        """Return plain values for JSON."""
        return {"step": self.step, "time_ms": self.time_ms, "metrics": self.metrics}


class StateMeta(TypedDict):
    """Of a state what is no tensor: content of a checkpoint's `state.json`; see `TrainState`, and `TrainSummary`.

    Earlier versions did not write what may be missing.
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
    """A state at rest on the CPU: what a checkpoint holds."""

    step: int
    files: dict[str, Tensors]
    """Tensors by file stem: `model`, `optimizer` and, when on, `ema`."""
    meta: StateMeta


@dataclass
class MetricAccumulator:
    """Sums since the last log point, kept on the device so that adding needs no synchronisation."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    bad: int = 0
    """Undecodable samples that this rank met, not yet in the state's count."""

    def add(self, values: dict[str, Tensor] | None, bad: int) -> None:
        """Add one step's scalars (None: it was skipped) and undecodable samples."""
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
    step: int = 0
    """Optimizer steps done."""
    passed_over: int = 0
    """Steps' worth of samples that roll-backs left out."""
    roll_backs: int = 0
    skipped: int = 0
    """Steps without an update because they were not finite; they count as done."""
    skipped_in_row: int = 0
    """Of these, the latest ones without a finite step between them."""
    best_value: float | None = None
    best_step: int | None = None
    evaluations_without_gain: int = 0
    gain_value: float | None = None
    """Value of the last evaluation that counted as a gain for early stopping."""
    bad_samples: int = 0
    """Undecodable samples met so far, on all ranks."""
    bad_named: int = 0
    """Of `bad_samples`, those whose files all ranks know."""
    bad_files: dict[str, str] = field(default_factory=dict)
    """Reason by path, of the undecodable files that this attempt met: this rank's own, and the others' as exchanged."""
    changed_files: set[str] = field(default_factory=set)
    """Files that this rank found to be others than those that the run began with."""
    save_failed: bool = False
    """Whether, at the last log point, a rank's last checkpoint had not been written."""
    seconds: float = 0.0
    """Wall time spent training, over all attempts."""
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SPENT, 0.0))
    """Of `seconds` what waiting for data and copying checkpoints took; besides, what evaluations took. Without
    synchronisation: a device may still have been at work on steps meanwhile."""
    running: MetricAccumulator = field(default_factory=MetricAccumulator)
    history: list[Record] = field(default_factory=list)
    """Records that the controller may not have written down yet: they ride along in checkpoints."""
    forget_before_ms: int = 0
    """Older records were in two checkpoints and left this process at least `RECALL_MS` ago."""
    last_metrics: dict[str, float] = field(default_factory=dict)
    """Result of the last evaluation."""
    best_metrics: dict[str, float] = field(default_factory=dict)
    """Result of the best evaluation."""

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and registered: the average when there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def position(self) -> int:
        """The next step's place in the stream of samples, in steps; random numbers go by it too."""
        return self.step + self.passed_over

    def update_ema(self) -> None:
        """Take the weights of the step just done into the average.

        Under warm-up the decay follows from `step` alone (timm counts steps from 1 and the decay's t from 0), so that
        a resumed run needs no other state.
        """
        if self.ema is not None:
            self.ema.update(self.model, self.step if self.ema.use_warmup else None)

    def skip_step(self) -> None:
        """Count a step as done that made no update."""
        self.step += 1
        self.skipped += 1
        self.skipped_in_row += 1

    def skip_samples_to(self, position: int, roll_backs: int) -> None:
        """After a roll-back: pass over the samples up to those of the step at a position."""
        self.passed_over = position + 1 - self.step
        self.roll_backs = roll_backs
        self.skipped_in_row = 0

    def add_step(self, metrics: dict[str, Tensor] | None, micro_batches: list[Batch]) -> None:
        """Take in a step's scalars (None: skipped), and which samples were left out of this rank's batches."""
        if metrics is not None:
            self.skipped_in_row = 0
        self.running.add(metrics, sum(len(batch.bad) for batch in micro_batches))
        for batch in micro_batches:
            self.bad_files.update(batch.bad)
            self.changed_files.update(batch.changed)

    def add_evaluation(self, metrics: dict[str, float], value: float, min_delta: float = 0.0) -> bool:
        """Take in an evaluation and its score; True when it is the best so far. One that is not a number never is.

        Args:
            metrics: what was evaluated.
            value: the score, higher is better.
            min_delta: smallest gain that ends a series of evaluations without one. The gain is measured from the last
                one that counted, so that many small ones add up.
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
        """After a checkpoint: let go of records that the checkpoint before already carried a while ago."""
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
        """Size of a snapshot's tensors by file stem, once the optimizer has its moments (at its first step)."""
        moments = (
            _moment_bytes(self.optimizer, group.get("momentum", 0.0), parameter)
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        )
        sizes = {"model": _weight_bytes(self.model), "optimizer": sum(moments)}
        return sizes if self.ema is None else {**sizes, "ema": _weight_bytes(self.ema.module)}

    def snapshot_bytes(self) -> int:
        """Size of all of a snapshot's tensors; see `bytes_by_file`."""
        return sum(self.bytes_by_file().values())

    def snapshot(self) -> Snapshot:
        """Copy everything to the CPU; the loop may go on at once."""
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
        """Take on a snapshot exactly; keys and shapes must agree.

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
        self.spent |= meta.get("spent", {})  # earlier versions did not count
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
        """Trainable parameters in the order in which the optimizer numbers them."""
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
        numbers = {name: number for number, (name, _) in enumerate(self._named_parameters())}
        states: dict[int, dict[str, Tensor]] = {}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition("/")
            if name not in numbers:
                raise RuntimeError(f"the checkpoint's optimizer holds {name!r}, which this model does not train")
            states.setdefault(numbers[name], {})[key] = tensor
        # torch's own loading puts each tensor where this optimizer wants it (device, type)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _weight_bytes(model: nn.Module) -> int:
    return sum(_nbytes(each) for each in model.state_dict().values() if isinstance(each, Tensor))


def _moment_bytes(optimizer: torch.optim.Optimizer, momentum: float, parameter: nn.Parameter) -> int:
    """What the optimizer will keep for a parameter: AdamW two moments and a float32 step, SGD its momentum."""
    if isinstance(optimizer, torch.optim.AdamW):
        return 2 * _nbytes(parameter) + torch.float32.itemsize
    return _nbytes(parameter) if momentum else 0


def _to_cpu(tensors: Tensors) -> Tensors:
    """Contiguous copies: safetensors refuses channels-last and shared memory."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items() if isinstance(v, Tensor)}
