"""The training loop of every task: batch, step, report, evaluate, save; without Ray and MLflow."""

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
"""Least number of samples that the limit `data.max_bad_fraction` is taken of: a fraction of fewer says little."""

MAX_NAMED_FILES = 5
"""Most undecodable files that an error names; the run's folder has the list of all."""

MAX_CAPTURES = 10
"""Most steps of a run that `training.nonfinite.capture` writes: each has all weights and the optimizer."""

StopReason = Literal["finished", "stopped early", "not finite", "bad samples", "not saved", "node leaving"]
"""Why the loop ended: "not saved" is a failed checkpoint, "node leaving" a preemption."""


@dataclass(frozen=True)
class TrainContext:
    """What stays fixed while a rank trains."""

    stage: Stage
    length: Length
    """Numbers of steps: in total, in an epoch, between evaluations and checkpoints."""
    task: Task
    device: torch.device
    rank: int
    world: int
    """Number of ranks."""
    metric: str = ""
    """Name of the metric by which evaluations are compared; empty: the task's `best_metric`."""
    lower_is_better: bool = False
    """Whether a lower value of that metric is better."""

    @property
    def checks_each_step(self) -> bool:
        """Return whether every step is checked for non-finite values, which makes the host wait for the device."""
        nonfinite = self.stage.training.nonfinite
        return nonfinite.action != "stop" or nonfinite.capture

    def score(self, metrics: dict[str, float]) -> float:
        """Return the score of an evaluation, higher is better: the metric, negated where lower is better."""
        value = metrics[self.metric or self.task.best_metric]
        return -value if self.lower_is_better else value

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the recipe's precision."""
        enabled = self.stage.training.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


class TrainCallbacks(Protocol):
    """What the loop calls for input and output. All ranks call each method at the same steps, except `save_failed`."""

    def batches(self, first: int) -> Iterator[Batch]:
        """Return micro-batches on the device, `accumulation_steps` a step, from a position (in steps) of the stream."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics of a model on the validation split, equal on all ranks."""

    def report(self, record: Record) -> None:
        """Report a record that is equal on all ranks; must not wait for anything slow."""

    def save(self, state: TrainState, value: float | None) -> None:
        """Save the state and, after an evaluation, its score; copies before it returns, writes later."""

    def save_failed(self) -> bool:
        """Return whether this rank's last write of a checkpoint failed."""

    def record_bad_files(self, files: dict[str, str]) -> None:
        """Record the undecodable training files that all ranks have found in this attempt: reason by path."""

    def after_step(self, step: int) -> bool:
        """Return, equally on all ranks, whether to save and end since a node is leaving; called with the steps done."""

    def rollback(self, state: TrainState) -> None:
        """Restore the state from the newest checkpoint, the same on all ranks."""

    def capture(self, state: TrainState, micro_batches: list[Batch]) -> None:
        """Store a step that is not finite: the state before it, and this rank's micro-batches."""


@dataclass(frozen=True)
class TrainResult:
    """How the loop ended."""

    reason: StopReason
    detail: str = ""
    """More about the reason, for people; may be empty."""


def train(context: TrainContext, state: TrainState, callbacks: TrainCallbacks) -> TrainResult:
    """Train from `state.step` to the end of the recipe, and return how training ended; `state` is changed in place.

    Each pass of the loop takes the step's micro-batches, does the step, and at the steps that the recipe names reports,
    evaluates and saves. All ranks make every decision here equally.

    Args:
        context: what stays fixed while this rank trains.
        state: model, optimizer and counters.
        callbacks: input and output of the loop.

    Raises:
        UserError: files have changed since the run began, or there is no checkpoint to go back to.
    """
    length, training = context.length, context.stage.training
    if state.step >= length.total:
        return TrainResult("finished")
    if _early_stop_is_due(context, state):
        return TrainResult("stopped early", _describe_early_stop(state))
    model = distributed(context, state.model)
    model.train()
    batches = callbacks.batches(state.position)
    micro = _take_batches(batches, training.accumulation_steps)
    warm_up(context, model, micro[0])
    clock = _Clock()
    while True:
        metrics = train_step(context, model, state, micro)
        if metrics is None:
            if ended := _handle_nonfinite(context, state, callbacks, micro):
                return ended
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
        if (saves or logs) and (ended := _log_point(context, state, callbacks, clock, saves=saves, reports=logs)):
            return ended
        value = _evaluate(context, state, callbacks, clock) if evaluates else None
        if saves:
            with _count_time(state, "checkpoint"):
                callbacks.save(state, value)
        if done:
            return TrainResult("finished")
        if evaluates and _early_stop_is_due(context, state):
            return TrainResult("stopped early", _describe_early_stop(state))
        if leaving:
            return TrainResult("node leaving")
        before = state.spent["data"]
        with _count_time(state, "data"):
            micro = _take_batches(batches, training.accumulation_steps)
        clock.data_wait += state.spent["data"] - before


def train_step(
    context: TrainContext, model: nn.Module, state: TrainState, micro_batches: list[Batch]
) -> dict[str, Tensor] | None:
    """Do one optimizer step over the rank's micro-batches.

    The gradient is that of the mean loss over the global batch, however its samples are distributed: each micro-batch's
    mean is weighted by its number of samples over the rank's equal share of the global batch, and
    DistributedDataParallel averages over ranks.

    Args:
        context: what stays fixed while this rank trains.
        model: the model as `distributed` returns it.
        state: model, optimizer and counters; changed in place.
        micro_batches: this rank's micro-batches of the step, from the loader.

    Returns:
        Scalars on the device: `train/loss` (this rank's part of the global mean), its parts and the gradient norm.
        None, equally on all ranks, when steps are checked and this one is not finite: the state is then as before.
    """
    stage = context.stage
    torch.manual_seed(seeds.derive(stage.training.seed, state.position, context.rank))
    optim.set_learning_rate(state.optimizer, learning_rate(state.step, stage.optimizer, context.length))
    buffers = [buffer.clone() for buffer in state.model.buffers()] if context.checks_each_step else []
    parts: dict[str, Tensor] = {}
    for index, batch in enumerate(micro_batches):
        prepared = context.task.prepare(batch, "train", (stage.training.seed, state.position, context.rank, index))
        share = batch.samples * context.world / stage.training.global_batch_size
        with _synchronise(model, last=index == len(micro_batches) - 1):
            with context.autocast():
                loss, logs = context.task.loss(model, prepared)
            with _gradients_of_samples(state.model, batch):
                # a loss that is not finite makes the gradient not finite: that tells the other ranks, in this same step
                (loss * (share + 0.0 * loss.detach())).backward()
        for name, scalar in {"loss": loss, **logs}.items():
            weighted = scalar.detach() * share if batch.samples else torch.zeros_like(scalar.detach())
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
    """Return the model, compiled and wrapped for this process group; its parameters are those of `model`."""
    compiled: nn.Module = torch.compile(model) if context.stage.training.compile is True else model  # type: ignore[assignment]
    if context.world == 1:
        return compiled
    return DistributedDataParallel(
        compiled,
        device_ids=[context.device] if context.device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # gradients live in the buckets: no second copy of them
    )


def warm_up(context: TrainContext, model: nn.Module, batch: Batch) -> None:
    """Run two forward and backward passes without an effect, before the first step of every attempt.

    DistributedDataParallel reorders its buckets after its first backward pass. With three or more ranks sums then
    round differently than in a run that was never stopped; after these passes both have the same order.

    Args:
        context: what stays fixed while this rank trains.
        model: the model as `distributed` returns it; only DistributedDataParallel needs the passes.
        batch: a micro-batch, from the loader.
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
    """Measures where the time goes between log points, on this rank; times are in seconds."""

    def __init__(self) -> None:
        self.window_start = self.last = time.perf_counter()
        self.window_steps = 0
        self.data_wait = 0.0
        self._paused = self.last

    def seconds_of_step(self, state: TrainState) -> None:
        """Add the time since the last call to the training time, and count one step."""
        now = time.perf_counter()
        state.seconds += now - self.last
        self.last = now
        self.window_steps += 1

    def pause(self) -> None:
        """Stop counting, for an evaluation."""
        self._paused = time.perf_counter()

    def resume(self) -> None:
        """Continue counting."""
        pause = time.perf_counter() - self._paused
        self.window_start += pause
        self.last += pause

    def window(self) -> tuple[float, float, int]:
        """Return seconds, seconds of waiting for data, and steps of the window; start the next window."""
        seconds = time.perf_counter() - self.window_start
        result = (seconds, self.data_wait, self.window_steps)
        self.window_start, self.data_wait, self.window_steps = time.perf_counter(), 0.0, 0
        return result


@contextmanager
def _count_time(state: TrainState, part: str) -> Iterator[None]:
    """Add the wall time of the block to a part of `state.spent`, in seconds."""
    since = time.perf_counter()
    yield
    state.spent[part] += time.perf_counter() - since


def _log_point(
    context: TrainContext, state: TrainState, callbacks: TrainCallbacks, clock: "_Clock", *, saves: bool, reports: bool
) -> TrainResult | None:
    """Exchange counters and averages among ranks, and report them; return why training must end, else None."""
    record = _log(context, state, clock, save_failed=callbacks.save_failed())
    if saves or _too_many_bad(context, state):
        _exchange_bad_files(context, state, callbacks)
    if ended := _reason_to_stop(context, state, record):
        return ended
    if reports:
        _report(state, callbacks, record)
        state.running = MetricAccumulator()
    return None


def _evaluate(context: TrainContext, state: TrainState, callbacks: TrainCallbacks, clock: "_Clock") -> float:
    """Evaluate the present state, report its metrics, and return its score."""
    clock.pause()
    with _count_time(state, "evaluation"):
        metrics = callbacks.evaluate(state.evaluated)
    value = context.score(metrics)
    rule = context.stage.training.early_stopping
    best = state.add_evaluation(metrics, value, rule.min_delta if rule else 0.0)
    values = {**metrics, "val/is_best": float(best)}
    _report(state, callbacks, Record(state.step, _agreed_time_ms(context), values, state.roll_backs))
    clock.resume()
    return value


def _handle_nonfinite(
    context: TrainContext, state: TrainState, callbacks: TrainCallbacks, micro: list[Batch]
) -> TrainResult | None:
    """Do with a step that is not finite what the recipe says; return why training must end, else None.

    A skipped step counts as done, and its samples are not used again. A roll-back continues after the bad step's
    samples, with other random numbers, or it would only reach the same step again. All ranks do the same.
    """
    rule = context.stage.training.nonfinite
    if rule.capture and state.skipped + state.roll_backs < MAX_CAPTURES:
        callbacks.capture(state, micro)
    problem = f"the loss or gradient of step {state.step + 1} is not finite"
    if rule.action == "stop":
        return TrainResult("not finite", f"{problem}; weights and checkpoints are those before it")
    if rule.action == "skip":
        if state.skipped_in_row == rule.limit:
            return TrainResult("not finite", f"{problem}, after {rule.limit} skipped steps in a row (nonfinite.limit)")
        state.skip_step()
        return None
    if state.roll_backs == rule.limit:
        return TrainResult("not finite", f"{problem}, after {rule.limit} roll-backs (nonfinite.limit)")
    position, roll_backs = state.position, state.roll_backs
    callbacks.rollback(state)
    state.skip_samples_to(position, roll_backs + 1)
    return None


def _checkpoint_is_due(context: TrainContext, state: TrainState) -> bool:
    every = context.length.checkpoint_every
    return every is not None and state.step % every == 0


def _log(context: TrainContext, state: TrainState, clock: _Clock, *, save_failed: bool) -> Record:
    """Return averages over all ranks since the last log point; for these the host waits for the device.

    Afterwards the sums are equal on all ranks, so a checkpoint of rank 0 has the values of every rank.

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
    # averaged over ranks, as DistributedDataParallel averages gradients
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
    return Record(state.step, int(time_ms), metrics, state.roll_backs)


def _exchange_bad_files(context: TrainContext, state: TrainState, callbacks: TrainCallbacks) -> None:
    """Exchange which files could not be decoded, if any rank has found some since the last time, and record them."""
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
    """Return the time of rank 0 in milliseconds since the epoch, so that records are equal on all ranks."""
    now = torch.tensor([int(time.time() * 1000)], dtype=torch.int64, device=context.device)
    if context.world > 1:
        dist.broadcast(now, src=0)
    return int(now.item())


def _report(state: TrainState, callbacks: TrainCallbacks, record: Record) -> None:
    state.history.append(record)
    callbacks.report(record)


def _early_stop_is_due(context: TrainContext, state: TrainState) -> bool:
    rule = context.stage.training.early_stopping
    return rule is not None and state.evaluations_without_gain >= rule.patience


def _describe_early_stop(state: TrainState) -> str:
    return f"{state.evaluations_without_gain} evaluations without gain"


def _samples_seen(context: TrainContext, state: TrainState) -> int:
    return state.step * context.stage.training.global_batch_size


def _too_many_bad(context: TrainContext, state: TrainState) -> bool:
    return state.bad_samples > context.stage.data.max_bad_fraction * max(_samples_seen(context, state), FEW_SAMPLES)


def _reason_to_stop(context: TrainContext, state: TrainState, record: Record) -> TrainResult | None:
    """Return why training must end here, else None."""
    checked = [record.metrics[name] for name in ("train/loss", "train/grad_norm") if name in record.metrics]
    if not all(math.isfinite(value) for value in checked):  # none, if all steps since the last log point were skipped
        return TrainResult("not finite", _describe_nonfinite(record))
    if state.save_failed and context.stage.training.on_checkpoint_failure == "stop":
        return TrainResult("not saved")
    if _too_many_bad(context, state):
        return TrainResult("bad samples", _describe_bad_files(context, state))
    return None


def _describe_bad_files(context: TrainContext, state: TrainState) -> str:
    lines = [f"\n  {path}: {reason}" for path, reason in sorted(state.bad_files.items())]
    more = and_more(len(lines), MAX_NAMED_FILES, before="\n  ", what="more files")
    summary = f"{state.bad_samples} of {_samples_seen(context, state)} samples could not be decoded:"
    return "".join([summary, *lines[:MAX_NAMED_FILES], more])


def _describe_nonfinite(record: Record) -> str:
    return (
        f"at or before step {record.step} the loss ({record.metrics['train/loss']}) or gradient norm "
        f"({record.metrics['train/grad_norm']}) is not finite; no later state was saved"
    )


def _take_batches(batches: Iterator[Batch], count: int) -> list[Batch]:
    return [next(batches) for _ in range(count)]


def _synchronise(model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Return a context that exchanges gradients at the last micro-batch of a step only."""
    if last or not isinstance(model, DistributedDataParallel):
        return nullcontext()
    return model.no_sync()


@contextmanager
def _gradients_of_samples(model: nn.Module, batch: Batch) -> Iterator[None]:
    """Let the backward pass in the block add zeros to the parameters' gradients if the batch has blank images only.

    Their loss may be 0 / 0. The pass itself is still done, as on the other ranks.
    """
    hooks = [] if batch.samples else [p.register_hook(torch.zeros_like) for p in model.parameters() if p.requires_grad]
    yield
    for hook in hooks:
        hook.remove()
