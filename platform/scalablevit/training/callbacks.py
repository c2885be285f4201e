"""The training loop's callbacks on each rank: they read batches, and report metrics and checkpoints."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from scalablevit.config.data import CocoInstances, LabelledImages, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.extensions import registered_metrics
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import Batch
from scalablevit.data.dataset import ImageSizes, SampleDataset
from scalablevit.data.loader import build_loader, prefetch, to_device
from scalablevit.data.sampler import TrainBatches, TrainOrder, eval_batches
from scalablevit.data.sources.base import Source
from scalablevit.run_files import BAD_SAMPLES
from scalablevit.tasks.registry import task_kind
from scalablevit.training.attempt_events import StartupTimings
from scalablevit.training.capture import capture_step
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.collectives import latest_checkpoint_for_all_ranks
from scalablevit.training.evaluate import evaluate
from scalablevit.training.loop import FEW_SAMPLES, TrainContext
from scalablevit.training.node_metrics import NodeSampler
from scalablevit.training.pace import pace_of
from scalablevit.training.state import Record, TrainState
from scalablevit.training.storage import add_bad_samples

logger = logging.getLogger(__name__)

FIRST_LOOKS = 10
"""Steps between two such checks until the first log point shows how long a step takes."""


Send = Callable[[list[Record], dict[str, float]], None]
"""Reports records and this node's metrics; all ranks call it at the same step."""


class WorkerCallbacks:
    """The loop's `TrainCallbacks` on one rank.

    Args:
        context: what is fixed while this rank trains.
        state: the training state, which the loop changes.
        source: the samples by split.
        store: the run's checkpoints.
        send: reports records.
        poller: finds out whether a node is about to be taken away.
        run_folder: the run's folder in run storage, path or address.
        stored_first: report an evaluation only after its checkpoint is stored.
    """

    def __init__(
        self,
        context: TrainContext,
        state: TrainState,
        source: Mapping[SplitName, Source],
        store: CheckpointStore,
        send: Send,
        poller: "PreemptionPoller",
        run_folder: str,
        *,
        stored_first: bool,
    ) -> None:
        stage = context.stage
        self._context = context
        self._state = state
        self._run_folder = run_folder
        self._stored_first = stored_first
        self._poller = poller
        self._node = NodeSampler(context.device)
        # records that a killed controller may not have passed on, in one report: each report waits for all ranks;
        # the outbox drops duplicates
        every_s = None if stored_first else pace_of(context.world).report_s
        self.sender = ThrottledReporter(send, self._node, waiting=state.history, every_s=every_s)
        self.sender.flush()
        self.writer = BackgroundWriter(store, stage.training.keep)
        self._order = train_order(stage, source["train"])
        sizes = ImageSizes(context.length.image_sizes, stage.training.global_batch_size)
        self._train = SampleDataset(source["train"], stage.data, stage.training.seed, train=True, sizes=sizes)
        self._val = SampleDataset(source["val"], stage.data, stage.training.seed, train=False)

    def batches(self, first: int) -> Iterator[Batch]:
        """Return the micro-batches from a position (in steps) of the stream to the end of the recipe."""
        context, training = self._context, self._context.stage.training
        keys = TrainBatches(
            self._order,
            global_batch_size=training.global_batch_size,
            accumulation_steps=training.accumulation_steps,
            rank=context.rank,
            world=context.world,
            first_step=first,
            end_step=context.length.total + self._state.passed_over,
        )
        workers = context.stage.cluster.loader_workers
        loader = build_loader(self._train, keys, context.task.collate("train"), workers=workers, device=context.device)
        return (with_images(batch, context) for batch in prefetch(loader, context.device))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return the metrics on the validation split, equal on all ranks."""
        context = self._context
        batches, registered = eval_batches_of(context, self._val), registered_metrics(context.stage)
        # the limit of training samples: a run is not to end after hours for a file among a few
        most = context.stage.data.max_bad_fraction * max(len(self._val), FEW_SAMPLES)
        return evaluate(context.task, model, batches, context.autocast(), most_bad=most, registered_metrics=registered)

    def report(self, record: Record) -> None:
        """Report a record, at once or with later ones: see `ThrottledReporter`."""
        self._poller.learn(record, self._context.stage.training.global_batch_size)
        self.sender.add(record)

    def save(self, state: TrainState, value: float | None) -> None:
        """Write a checkpoint in the background, on rank 0; `value` is the evaluation's score, None without one."""
        if self._context.rank == 0:
            self.writer.submit(state.snapshot(), value if value == value else None)
            if self._stored_first:
                self.writer.wait()
        self.sender.flush()
        state.forget_old_records()

    def save_failed(self) -> bool:
        """Return whether the last checkpoint could not be written."""
        return self.writer.failed is not None

    def record_bad_files(self, files: dict[str, str]) -> None:
        """Add files, with reason by path, to the run's list of undecodable files."""
        if self._context.rank == 0:
            try:
                add_bad_samples(self._run_folder, files)
            except OSError as error:  # a full disk must not end training
                logger.error("%s was not written: %s", BAD_SAMPLES, error)

    def after_step(self, step: int) -> bool:
        """Return whether a node is about to be taken away: the loop must then save and end."""
        return self._poller.after_step(step)

    def rollback(self, state: TrainState) -> None:
        """Restore the state from the newest checkpoint up to its step.

        Raises:
            UserError: there is no checkpoint.
        """
        self.writer.wait()
        restored = latest_checkpoint_for_all_ranks(self.writer.store, self._context.rank, at_most=state.step)
        if restored is None:
            raise UserError(
                "a step is not finite, and there is no checkpoint to go back to",
                where=self.writer.store.folder,
                fix="free space for checkpoints, or choose another training.nonfinite.action",
            )
        logger.warning("step %d is not finite: going back to %s", state.step + 1, restored[0])
        state.restore(restored[1])

    def capture(self, state: TrainState, micro_batches: list[Batch]) -> None:
        """Store a step whose loss or gradient is not finite; a failed write is only logged."""
        try:
            capture_step(self._run_folder, self._context, state, micro_batches)
        except OSError as error:
            logger.error("a step that is not finite was not captured: %s", error)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end the threads."""
        self.writer.wait()
        self._node.stop()


class PreemptionPoller:
    """Checks about every `every_s` seconds whether a node is about to go, at the same steps on all ranks.

    Args:
        about_to_go: returns whether a node is about to be taken away, the same on all ranks, which meet for it.
        timings: times of the attempt's start; the poller sets `first_step`.
        every_s: seconds between two checks.
    """

    def __init__(self, about_to_go: Callable[[], bool], timings: StartupTimings, every_s: float) -> None:
        self.timings = timings
        self._about_to_go = about_to_go
        self._every_s = every_s
        self._every = FIRST_LOOKS

    def learn(self, record: Record, global_batch_size: int) -> None:
        """Estimate from a record, which is equal on all ranks, how many steps there are between two checks."""
        rate = record.metrics.get("train/images_per_s", 0.0)
        if rate > 0:
            self._every = max(1, round(self._every_s * rate / global_batch_size))

    def after_step(self, step: int) -> bool:
        """Return whether a node is about to be taken away; checked at some steps only."""
        if not self.timings.first_step:
            self.timings.first_step = time.time()
        return step % self._every == 0 and self._about_to_go()


class ThrottledReporter:
    """Collects records and sends them at most once per `every_s`, by the records' times, equal on all ranks.

    Args:
        send: reports records.
        sampler: has this node's metrics.
        waiting: records to send first.
        every_s: fewest seconds between two reports; None: only `flush` sends.
    """

    def __init__(self, send: Send, sampler: NodeSampler, waiting: list[Record], *, every_s: float | None) -> None:
        self._send = send
        self._every_s = every_s
        self._sampler = sampler
        self._waiting = list(waiting)
        self._sent_ms = 0

    def add(self, record: Record) -> None:
        """Add a record, and send if enough time has passed; records are equal on all ranks, so all decide the same."""
        self._waiting.append(record)
        if self._every_s is not None and record.time_ms - self._sent_ms >= 1000 * self._every_s:
            self.flush()
            self._sent_ms = record.time_ms

    def flush(self) -> None:
        """Send all records that wait."""
        if self._waiting:
            self._send(self._waiting, self._sampler.latest())
            self._waiting = []


def train_order(stage: Stage, source: Source) -> TrainOrder:
    """Return the order of the stream of training samples, by the recipe's data section."""
    data, seed = stage.data, stage.training.seed
    if isinstance(data, CocoInstances) and data.group_by_aspect and source.annotations is not None:
        heights, widths = source.annotations.sizes.T
        landscape = (widths >= heights).astype(np.int64)
        return TrainOrder(len(source), 1, seed, groups=landscape, batch=stage.training.global_batch_size)
    return TrainOrder(len(source), data.repeated_augmentation if isinstance(data, LabelledImages) else 1, seed)


def with_images(batch: Batch, context: TrainContext) -> Batch:
    """Return the batch; one whose samples are all bad has blank images, so that any task's loss can take it.

    The rank still takes part in the step, where a batch weighs as much as it has samples: here nothing.
    """
    if batch.samples:
        return batch
    stage = context.stage
    # two: batch norm may have no variance of one; no more than training's own, which fit in memory
    count = min(2, micro_batch_size(context))
    blank = task_kind(stage.task.kind).build_costs(stage, context.task.classes).blank_batch(count)
    return replace(to_device(blank, context.device), samples=0, bad=batch.bad, changed=batch.changed)


def micro_batch_size(context: TrainContext) -> int:
    """Return the samples of one rank's training micro-batch, at least 1."""
    training = context.stage.training
    return max(1, training.global_batch_size // (context.world * training.accumulation_steps))


def eval_batches_of(context: TrainContext, data: SampleDataset) -> Iterator[Batch]:
    """Yield this rank's share of the validation split, in batches as large as a training micro-batch."""
    keys = eval_batches(len(data), context.rank, context.world, micro_batch_size(context))
    loaders = context.stage.cluster.loader_workers
    loader = build_loader(data, keys, context.task.collate("val"), workers=loaders, device=context.device)
    return prefetch(loader, context.device)
