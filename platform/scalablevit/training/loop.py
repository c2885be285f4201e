"""The training loop of every task: batch, step, report, evaluate, save; no Ray and no MLflow in it."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scalablevit.config.recipe import FIRST_STEPS, Length, Stage
from scalablevit.config.schedule import learning_rate
from scalablevit.data.batch import Batch
from scalablevit.tasks.task import Task
from scalablevit.text import and_more
from scalablevit.training import optim, seeds
from scalablevit.training.collectives import end_with_changed_files
from scalablevit.training.state import MetricAccumulator, Record, TrainState

FEW_SAMPLES = 1000
"""A fraction of fewer samples than these says little: the limit of bad ones is taken of these at least."""

MAX_NAMED_FILES = 5
"""Undecodable files that the error names; all of them are in the run's folder."""

StopReason = Literal["finished", "stopped early", "not finite", "bad samples", "not saved", "node leaving"]


@dataclass(frozen=True)
class TrainContext:
    """What stays fixed while a rank trains."""

    stage: Stage
    length: Length
    task: Task
    device: torch.device
    rank: int
    world: int
    metric: str = ""
    """By which evaluations are compared; empty: the task's own."""
    lower_is_better: bool = False

    @property
    def checks_each_step(self) -> bool:
        """Whether every step is asked if it is finite, which makes the host wait for the device."""
        wanted = self.stage.training.nonfinite
        return wanted.action != "stop" or wanted.capture

    def score(self, metrics: dict[str, float]) -> float:
        """What an evaluation is worth, higher for better: the metric, negated where lower is better."""
        value = metrics[self.metric or self.task.best_metric]
        return -value if self.lower_is_better else value

    def autocast(self) -> torch.autocast:
        """Autocast in the recipe's precision."""
        on = self.stage.training.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)


class TrainCallbacks(Protocol):
    """What the loop calls for input and output. Every rank calls each at the same steps, but `save_failed`."""

    def batches(self, first: int) -> Iterator[Batch]:
        """Micro-batches on the device from a position (in steps) of the stream on, `accumulation_steps` a step."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of a model on the validation split, equal on all ranks."""

    def report(self, record: Record) -> None:
        """Take a record that is equal on all ranks; must not wait for anything slow."""

    def save(self, state: TrainState, value: float | None) -> None:
        """Take the state and, after an evaluation, its score; copies before it returns, writes later."""

    def save_failed(self) -> bool:
        """Whether this rank's last write of a checkpoint failed."""

    def record_bad_files(self, files: dict[str, str]) -> None:
        """Take the undecodable training files that all ranks have met in this attempt: reason by path."""

    def after_step(self, step: int) -> bool:
        """Take the number of steps done, after each; True, equally on all ranks: save and end, a node is leaving."""

    def rollback(self, state: TrainState) -> None:
        """Give the state what the newest checkpoint holds, the same on all ranks."""

    def capture(self, state: TrainState, micro_batches: list[Batch]) -> None:
        """Take a step that is not finite: the state before it, and this rank's micro-batches."""


@dataclass(frozen=True)
class TrainResult:
    """How the loop ended."""

    reason: StopReason
    detail: str = ""


def train(context: TrainContext, state: TrainState, callbacks: TrainCallbacks) -> TrainResult:
    """Train from `state.step` to the end of the recipe; `state` is changed in place.

    Read top to bottom: take the step's micro-batches, do the step, and at the steps that the recipe names report,
    evaluate and save. Everything decided here is decided equally on all ranks.
    """
    length, training = context.length, context.stage.training
    if state.step >= length.total:
        return TrainResult("finished")
    if _no_gain(context, state):
        return TrainResult("stopped early", _gains(state))
    model = distributed(context, state.model)
    model.train()
    batches = callbacks.batches(state.position)
    micro = _take_batches(batches, training.accumulation_steps)
    warm_up(context, model, micro[0])
    clock = _Clock()
    while True:
        metrics = train_step(context, model, state, micro)
        if metrics is None:
            if refused := _remedy(context, state, callbacks, micro):
                return refused
            if training.nonfinite.action == "rollback":
                batches = callbacks.batches(state.position)
                micro = _take_batches(batches, training.accumulation_steps)
                continue
        state.add_step(metrics, micro)
        clock.seconds_of_step(state)
        done = state.step >= length.total
        evaluates = done or state.step % length.evaluate_every == 0
        leaving = callbacks.after_step(state.step)
        saves = leaving or evaluates or _checkpoint_is_due(context, state)
        logs = state.step % training.log_every_steps == 0 or state.step in FIRST_STEPS
        if (saves or logs) and (refused := _log_point(context, state, callbacks, clock, saves=saves, reports=logs)):
            return refused
        value = _evaluate(context, state, callbacks, clock) if evaluates else None
        if saves:
            with _counted(state, "checkpoint"):
                callbacks.save(state, value)
        if done:
            return TrainResult("finished")
        if evaluates and _no_gain(context, state):
            return TrainResult("stopped early", _gains(state))
        if leaving:
            return TrainResult("node leaving")
        before = state.spent["data"]
        with _counted(state, "data"):
            micro = _take_batches(batches, training.accumulation_steps)
        clock.data_wait += state.spent["data"] - before


def train_step(
    context: TrainContext, model: nn.Module, state: TrainState, micro_batches: list[Batch]
) -> dict[str, Tensor] | None:
    """One optimizer step over the rank's micro-batches.

    The gradient is that of the mean loss over the global batch, however its samples are spread: each micro-batch's
    mean is weighted by its number of samples over the rank's fair share, and DistributedDataParallel averages ranks.

    Returns:
        Scalars on the device: `train/loss` (this rank's part of the global mean), its parts and the gradient norm.
        None, equally on all ranks, when the plan looks at each step and this one is not finite: the state is then as
        it was before.
    """
    stage = context.stage
    torch.manual_seed(seeds.derive(stage.training.seed, state.position, context.rank))
    optim.set_learning_rate(state.optimizer, learning_rate(state.step, stage.optimizer, context.length))
    buffers = [buffer.clone() for buffer in state.model.buffers()] if context.checks_each_step else []
    parts: dict[str, Tensor] = {}
    for number, batch in enumerate(micro_batches):
        prepared = context.task.prepare(batch, "train", (stage.training.seed, state.position, context.rank, number))
        share = batch.samples * context.world / stage.training.global_batch_size
        with _synchronise(model, last=number == len(micro_batches) - 1):
            with context.autocast():
                loss, logs = context.task.loss(model, prepared)
            # of a loss that is not finite the gradient must not be either: it tells the other ranks, in this same step
            (loss * (share + 0.0 * loss.detach())).backward()
        for name, scalar in {"loss": loss, **logs}.items():
            weighted = scalar.detach() * share
            parts[f"train/{name}"] = parts[f"train/{name}"] + weighted if f"train/{name}" in parts else weighted
    parts["train/grad_norm"] = optim.clip_gradients(state.model.parameters(), stage.optimizer.clip_norm).detach()
    if context.checks_each_step and not math.isfinite(parts["train/grad_norm"].item()):
        state.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(state.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        return None
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.update_ema()
    return parts


def distributed(context: TrainContext, model: nn.Module) -> nn.Module:
    """The model as this process group trains it; its parameters stay those of `model`."""
    compiled: nn.Module = torch.compile(model) if context.stage.training.compile is True else model  # type: ignore[assignment]
    if context.world == 1:
        return compiled
    return DistributedDataParallel(
        compiled,
        device_ids=[context.device] if context.device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # gradients live in the buckets: no second copy of them
    )


def warm_up(context: TrainContext, model: nn.Module, batch: Batch) -> None:
    """Two passes that leave no trace, before the first step of every attempt.

    DistributedDataParallel reorders its buckets after its first backward pass. With three or more ranks sums then
    round differently than in a run that was never stopped; after these passes both have the same order.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    for _ in range(2):
        prepared = context.task.prepare(batch, "train", (context.stage.training.seed, 0, context.rank, 0))
        with context.autocast():
            loss, _ = context.task.loss(model, prepared)
        loss.backward()
        model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.module.named_buffers():
            buffer.copy_(buffers[name])


class _Clock:
    """Where the time went since the last log point, as this rank saw it."""

    def __init__(self) -> None:
        self.window_start = self.last = time.perf_counter()
        self.window_steps = 0
        self.data_wait = 0.0
        self._paused = self.last

    def seconds_of_step(self, state: TrainState) -> None:
        """Count the time since the last call as training time."""
        now = time.perf_counter()
        state.seconds += now - self.last
        self.last = now
        self.window_steps += 1

    def pause(self) -> None:
        """Leave out what follows (evaluation)."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Go on counting."""
        away = time.perf_counter() - self._paused
        self.window_start += away
        self.last += away

    def window(self) -> tuple[float, float, int]:
        """Seconds, seconds waiting for data, and steps of the window; starts the next one."""
        seconds = time.perf_counter() - self.window_start
        result = (seconds, self.data_wait, self.window_steps)
        self.window_start, self.data_wait, self.window_steps = time.perf_counter(), 0.0, 0
        return result


@contextmanager
def _counted(state: TrainState, part: str) -> Iterator[None]:
    """Count what is done within as a part of the wall time."""
    since = time.perf_counter()
    yield
    state.spent[part] += time.perf_counter() - since


def _log_point(
    context: TrainContext, state: TrainState, callbacks: TrainCallbacks, clock: "_Clock", *, saves: bool, reports: bool
) -> TrainResult | None:
    """What all ranks tell each other now and then; why training cannot go on, if so."""
    record = _log(context, state, clock, save_failed=callbacks.save_failed())
    if saves or _too_many_bad(context, state):
        _exchange_bad_files(context, state, callbacks)
    if refused := _reason_to_stop(context, state, record):
        return refused
    if reports:
        _report(state, callbacks, record)
        state.running = MetricAccumulator()
    return None


def _evaluate(context: TrainContext, state: TrainState, callbacks: TrainCallbacks, clock: "_Clock") -> float:
    """The score of the state as it is; its metrics are reported."""
    clock.pause()
    with _counted(state, "evaluation"):
        metrics = callbacks.evaluate(state.evaluated)
    value = context.score(metrics)
    rule = context.stage.training.early_stopping
    best = state.add_evaluation(metrics, value, rule.min_delta if rule else 0.0)
    _report(state, callbacks, Record(state.step, _agreed_time_ms(context), {**metrics, "val/is_best": float(best)}))
    clock.resume()
    return value


def _remedy(
    context: TrainContext, state: TrainState, callbacks: TrainCallbacks, micro: list[Batch]
) -> TrainResult | None:
    """Do with a step that is not finite what the recipe says; why training cannot go on, if so. Equal on all ranks.

    A skipped step counts as done: its samples are passed over. A roll-back goes on after the bad step's samples, with
    other random numbers, or it would only arrive at the same step again.
    """
    wanted = context.stage.training.nonfinite
    if wanted.capture:
        callbacks.capture(state, micro)
    bad = f"the loss or gradient of step {state.step + 1} is not finite"
    if wanted.action == "stop":
        return TrainResult("not finite", f"{bad}; weights and checkpoints are those before it")
    if wanted.action == "skip":
        if state.skipped_in_row == wanted.limit:
            return TrainResult("not finite", f"{bad}, after {wanted.limit} skipped steps in a row (nonfinite.limit)")
        state.skip_step()
        return None
    if state.roll_backs == wanted.limit:
        return TrainResult("not finite", f"{bad}, after {wanted.limit} roll-backs (nonfinite.limit)")
    position, roll_backs = state.position, state.roll_backs
    callbacks.rollback(state)
    state.skip_samples_to(position, roll_backs + 1)
    return None


def _checkpoint_is_due(context: TrainContext, state: TrainState) -> bool:
    every = context.length.checkpoint_every
    return every is not None and state.step % every == 0


def _log(context: TrainContext, state: TrainState, clock: _Clock, *, save_failed: bool) -> Record:
    """Averages since the last log point over all ranks (the only device synchronisation between evaluations).

    Afterwards the sums are equal on all ranks, so a checkpoint of rank 0 holds what every rank goes on with.

    Raises:
        UserError: files have changed since the run began.
    """
    running = state.running
    names = sorted(running.sums)
    seconds, waited, steps = clock.window()
    own = [
        float(save_failed),
        running.bad,
        len(state.changed_files),
        seconds,
        waited,
        time.time() * 1000 if context.rank == 0 else 0.0,
    ]
    sums = [running.sums[name].reshape(1) for name in names]
    values = torch.cat([*sums, torch.tensor(own, dtype=torch.float64).to(context.device)])
    if context.world > 1:
        dist.all_reduce(values)
    # the parts are shares of the global mean as DistributedDataParallel averages them: so are they
    running.sums = dict(zip(names, values[: len(names)] / context.world, strict=True))
    *totals, failed, bad, changed, seconds, waited, time_ms = values.tolist()
    if changed:
        end_with_changed_files(state.changed_files)
    state.bad_samples, running.bad = state.bad_samples + int(bad), 0
    state.save_failed = failed > 0
    metrics = {name: total / context.world / running.steps for name, total in zip(names, totals, strict=False)}
    metrics["train/lr"] = learning_rate(state.step - 1, context.stage.optimizer, context.length)
    metrics["train/epoch"] = state.step / context.length.steps_per_epoch
    metrics["train/images_per_s"] = (
        steps * context.stage.training.global_batch_size * context.world / max(seconds, 1e-9)
    )
    metrics["train/data_wait"] = waited / max(seconds, 1e-9)
    metrics["train/bad_samples"] = state.bad_samples
    if context.checks_each_step:
        metrics |= {"train/skipped_steps": state.skipped, "train/roll_backs": state.roll_backs}
    return Record(state.step, int(time_ms), metrics)


def _exchange_bad_files(context: TrainContext, state: TrainState, callbacks: TrainCallbacks) -> None:
    """Exchange which files could not be decoded, if any rank met some since the last time."""
    if state.bad_named == state.bad_samples:
        return
    if context.world > 1:
        gathered: list[dict[str, str]] = [{}] * context.world
        dist.all_gather_object(gathered, state.bad_files)
        for files in gathered:
            state.bad_files.update(files)
    state.bad_named = state.bad_samples
    callbacks.record_bad_files(state.bad_files)


def _agreed_time_ms(context: TrainContext) -> int:
    """Rank 0's clock, so that records are equal on all ranks."""
    now = torch.tensor([int(time.time() * 1000)], dtype=torch.int64, device=context.device)
    if context.world > 1:
        dist.broadcast(now, src=0)
    return int(now.item())


def _report(state: TrainState, callbacks: TrainCallbacks, record: Record) -> None:
    state.history.append(record)
    callbacks.report(record)


def _no_gain(context: TrainContext, state: TrainState) -> bool:
    rule = context.stage.training.early_stopping
    return rule is not None and state.evaluations_without_gain >= rule.patience


def _gains(state: TrainState) -> str:
    return f"{state.evaluations_without_gain} evaluations without gain"


def _samples_seen(context: TrainContext, state: TrainState) -> int:
    return state.step * context.stage.training.global_batch_size


def _too_many_bad(context: TrainContext, state: TrainState) -> bool:
    return state.bad_samples > context.stage.data.max_bad_fraction * max(_samples_seen(context, state), FEW_SAMPLES)


def _reason_to_stop(context: TrainContext, state: TrainState, record: Record) -> TrainResult | None:
    """Why training cannot go on from here, if so."""
    looked_at = [record.metrics[name] for name in ("train/loss", "train/grad_norm") if name in record.metrics]
    if not all(math.isfinite(value) for value in looked_at):  # none, where all steps since the last time were skipped
        return TrainResult("not finite", _not_finite(record))
    if state.save_failed and context.stage.training.on_checkpoint_failure == "stop":
        return TrainResult("not saved")
    if _too_many_bad(context, state):
        return TrainResult("bad samples", _bad_files(context, state))
    return None


def _bad_files(context: TrainContext, state: TrainState) -> str:
    named = [f"\n  {path}: {reason}" for path, reason in sorted(state.bad_files.items())]
    more = and_more(len(named), MAX_NAMED_FILES, before="\n  ", what="more files")
    counted = f"{state.bad_samples} of {_samples_seen(context, state)} samples could not be decoded:"
    return "".join([counted, *named[:MAX_NAMED_FILES], more])


def _not_finite(record: Record) -> str:
    return (
        f"at or before step {record.step} the loss ({record.metrics['train/loss']}) or gradient norm "
        f"({record.metrics['train/grad_norm']}) is not finite; no later state was saved"
    )


def _take_batches(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def _synchronise(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Exchange gradients with the last micro-batch of a step only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()
