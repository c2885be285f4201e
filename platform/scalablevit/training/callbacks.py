"""Callbacks of the training loop on each rank: batches in, metrics and checkpoints out."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from torch import nn

from scalablevit.config.data import CocoInstances, LabelledImages, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.extensions import registered_metrics
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import Batch
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.loader import build_loader, prefetch
from scalablevit.data.sampler import TrainBatches, TrainOrder, eval_batches
from scalablevit.data.sources.base import Source
from scalablevit.run_files import BAD_SAMPLES
from scalablevit.training.attempt_events import StartupTimings
from scalablevit.training.capture import capture_step
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.collectives import latest_checkpoint_for_all_ranks
from scalablevit.training.evaluate import evaluate
from scalablevit.training.loop import TrainContext
from scalablevit.training.node_metrics import NodeSampler
from scalablevit.training.state import Record, TrainState
from scalablevit.training.storage import add_bad_samples

logger = logging.getLogger(__name__)

REPORT_EVERY_MS = 1000
"""Records are handed on at most this often: Ray's controller takes one report per poll."""

LOOK_EVERY_S = 1.0
"""Between two questions whether a node is about to go: all ranks meet for one."""
FIRST_LOOKS = 10
"""Steps between two such questions until the first log point shows how long a step takes."""


Send = Callable[[list[Record], dict[str, float]], None]
"""Hands records and this node's metrics on; every rank calls it at the same time."""


class WorkerCallbacks:
    """The loop's `TrainCallbacks` on one rank.

    Args:
        context: what is trained.
        state: what the loop changes.
        source: samples by split.
        store: the run's checkpoints.
        send: takes records.
        poller: knows whether a node is about to go.
        run_folder: path or address.
        stored_first: hand an evaluation on only when its checkpoint is stored.
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
        # records that a killed controller may not have passed on, at once: each report waits for all ranks
        # the outbox drops doubles
        self.sender = ThrottledReporter(send, self._node, waiting=state.history, paced=not stored_first)
        self.sender.flush()
        self.writer = BackgroundWriter(store, stage.training.keep)
        self._order = train_order(stage, source["train"])
        self._train = SampleDataset(source["train"], stage.data, stage.training.seed, train=True)
        self._val = SampleDataset(source["val"], stage.data, stage.training.seed, train=False)

    def batches(self, first: int) -> Iterator[Batch]:
        """Micro-batches from a position of the stream to the end of the recipe."""
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
        return prefetch(loader, context.device)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on the validation split."""
        context = self._context
        batches, registered = eval_batches_of(context, self._val), registered_metrics(context.stage)
        return evaluate(context.task, model, batches, context.autocast(), registered=registered)

    def report(self, record: Record) -> None:
        """Hand a record on, soon."""
        self._poller.learn(record, self._context.stage.training.global_batch_size)
        self.sender.add(record)

    def save(self, state: TrainState, value: float | None) -> None:
        """Write a checkpoint in the background."""
        if self._context.rank == 0:
            self.writer.submit(state.snapshot(), value if value == value else None)
            if self._stored_first:
                self.writer.wait()
        self.sender.flush()
        state.forget_old_records()

    def save_failed(self) -> bool:
        """Whether the last checkpoint could not be written."""
        return self.writer.failed is not None

    def record_bad_files(self, files: dict[str, str]) -> None:
        """Add to the run's list of undecodable files."""
        if self._context.rank == 0:
            try:
                add_bad_samples(self._run_folder, files)
            except OSError as error:  # as for a checkpoint: a full disk must not end training
                logger.error("%s was not written: %s", BAD_SAMPLES, error)

    def after_step(self, step: int) -> bool:
        """Whether a node is about to go: what was trained until now must be saved, and the workers make way."""
        return self._poller.after_step(step)

    def rollback(self, state: TrainState) -> None:
        """Take on the newest checkpoint.

        Raises:
            UserError: there is none.
        """
        self.writer.wait()
        restored = latest_checkpoint_for_all_ranks(self.writer.store, self._context.rank)
        if restored is None:
            raise UserError(
                "a step is not finite, and there is no checkpoint to go back to",
                where=self.writer.store.folder,
                fix="free space for checkpoints, or choose another training.nonfinite.action",
            )
        logger.warning("step %d is not finite: going back to %s", state.step + 1, restored[0])
        state.restore(restored[1])

    def capture(self, state: TrainState, micro_batches: list[Batch]) -> None:
        """Write the step down."""
        try:
            capture_step(self._run_folder, self._context, state, micro_batches)
        except OSError as error:
            logger.error("a step that is not finite was not captured: %s", error)

    def close(self) -> None:
        """End the threads, after what is being written."""
        self.writer.wait()
        self._node.stop()


class PreemptionPoller:
    """Asks about every `LOOK_EVERY_S` seconds whether a node is about to go, at the same steps on all ranks."""

    def __init__(self, about_to_go: Callable[[], bool], timings: StartupTimings) -> None:
        self.timings = timings
        self._about_to_go = about_to_go
        self._every = FIRST_LOOKS

    def learn(self, record: Record, global_batch_size: int) -> None:
        """Take from a record, which is equal on all ranks, how many steps are a second."""
        rate = record.metrics.get("train/images_per_s", 0.0)
        if rate > 0:
            self._every = max(1, round(LOOK_EVERY_S * rate / global_batch_size))

    def after_step(self, step: int) -> bool:
        """Whether a node is about to go; asked at some steps only."""
        if not self.timings.first_step:
            self.timings.first_step = time.time()
        return step % self._every == 0 and self._about_to_go()


class ThrottledReporter:
    """Collects records and sends them at most once per `REPORT_EVERY_MS`, by the records' own, agreed times.

    Args:
        paced: False: only `flush` sends.
    """

    def __init__(self, send: Send, sampler: NodeSampler, waiting: list[Record], *, paced: bool) -> None:
        self._send = send
        self._paced = paced
        self._sampler = sampler
        self._waiting = list(waiting)
        self._sent_ms = 0

    def add(self, record: Record) -> None:
        """Send now if enough time has passed; equal records on all ranks make equal decisions."""
        self._waiting.append(record)
        if self._paced and record.time_ms - self._sent_ms >= REPORT_EVERY_MS:
            self.flush()
            self._sent_ms = record.time_ms

    def flush(self) -> None:
        """Send what waits."""
        if self._waiting:
            self._send(self._waiting, self._sampler.latest())
            self._waiting = []


def train_order(stage: Stage, source: Source) -> TrainOrder:
    """The stream of training samples, as the data section asks for it."""
    data, seed = stage.data, stage.training.seed
    if isinstance(data, CocoInstances) and data.group_by_aspect and source.annotations is not None:
        heights, widths = source.annotations.sizes.T
        landscape = (widths >= heights).astype(np.int64)
        return TrainOrder(len(source), 1, seed, groups=landscape, batch=stage.training.global_batch_size)
    return TrainOrder(len(source), data.repeated_augmentation if isinstance(data, LabelledImages) else 1, seed)


def eval_batches_of(context: TrainContext, data: SampleDataset) -> Iterator[Batch]:
    """This rank's share of the validation split, in batches as large as a training micro-batch."""
    training = context.stage.training
    size = max(1, training.global_batch_size // (context.world * training.accumulation_steps))
    keys = eval_batches(len(data), context.rank, context.world, size)
    loaders = context.stage.cluster.loader_workers
    loader = build_loader(data, keys, context.task.collate("val"), workers=loaders, device=context.device)
    return prefetch(loader, context.device)
