"""What runs on each rank: from a recipe's stage to the loop, with data, state and recovery in place."""

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from scalablevit.config.data import CocoInstances, ImageFolder
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Length, Stage
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.loader import Batch, build_loader, prefetch
from scalablevit.data.sampler import TrainBatches, TrainOrder, eval_batches
from scalablevit.data.sources import Source, open_source
from scalablevit.models.weights import load_initial
from scalablevit.tasks.task import SplitName, build_task
from scalablevit.training import seeds
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.evaluate import evaluate, world_size
from scalablevit.training.loop import Effects, Outcome, Plan, train
from scalablevit.training.node_metrics import NodeSampler
from scalablevit.training.optim import build_optimizer
from scalablevit.training.state import Record, Snapshot, TrainState
from scalablevit.training.storage import BAD_SAMPLES, START_NOTE, add_bad_samples, local_copy, put_text

T = TypeVar("T")

logger = logging.getLogger(__name__)

REPORT_EVERY_MS = 1000
"""Records are handed on at most this often: Ray's controller takes one report per poll."""


@dataclass(frozen=True)
class Assignment:
    """What a rank is told; plain values, so that it travels anywhere."""

    stage: str
    """The stage as JSON."""
    run_folder: str
    """Where the run's checkpoints lie: a path or an address."""
    root: str
    """Relative data paths resolve against it."""
    init_weights: str | None
    """File of initial weights (path or address), or a timm tag; already found by the driver."""
    init_sha256: str = ""
    """What the file of initial weights must have; empty: not known beforehand."""
    keep_head: bool = True
    """Whether a head whose shapes fit may be taken over: False when it is known to be for other classes."""
    evaluate_only: bool = False
    """Evaluate `init_weights`, all of them, and train nothing."""
    metric: str = ""
    """By which evaluations are compared; empty: the task's own."""
    lower_is_better: bool = False
    stored_first: bool = False
    """Hand an evaluation on only when its checkpoint is stored: whoever stops a run upon it can rely on that."""

    def as_dict(self) -> dict[str, Any]:
        """For Ray's `train_loop_config`."""
        return asdict(self)


Send = Callable[[list[Record], dict[str, float]], None]
"""Hands records and this node's figures on; every rank calls it at the same time."""


def run(assignment: Assignment, rank: int, world: int, device: torch.device, send: Send) -> dict[str, Any]:
    """Train one stage on this rank, from the newest checkpoint if there is one.

    Returns:
        On rank 0 `reason` and `detail` of the outcome and the state's summary; on each rank `metrics` of an evaluation,
        or `error` when the user must act. Besides `nondeterministic`: what torch said, under training.deterministic, of
        operations that have no deterministic implementation.
    """
    try:
        with _nondeterminism() as said:
            return {**_run(assignment, rank, world, device, send), "nondeterministic": said}
    except UserError as error:
        # returned, not raised: it is the same on every rank, and a restart would only repeat it
        return {"error": [error.what, error.where, error.fix]}


def _run(assignment: Assignment, rank: int, world: int, device: torch.device, send: Send) -> dict[str, Any]:
    stage = Stage.model_validate_json(assignment.stage)
    _configure_torch(stage)
    plan, source = together(lambda: _open(stage, assignment, device, rank, world))
    task, length = plan.task, plan.length
    if assignment.evaluate_only:
        return _evaluate_only(plan, source["val"], assignment)
    store = CheckpointStore(assignment.run_folder)
    restored = _newest_for_all(plan, store)
    state, start = together(lambda: _initial_or_restored(plan, restored, assignment))
    together(lambda: _prepare_storage(plan, store, state))
    if rank == 0:
        put_text(assignment.run_folder, START_NOTE, start)
    sampler = NodeSampler(device)
    # records that a killed controller may not have passed on, at once: each report waits for all ranks
    # the spool drops doubles
    sender = _PacedSender(send, sampler, waiting=state.history, paced=not assignment.stored_first)
    sender.flush()
    writer = BackgroundWriter(store, stage.training.keep)
    train_data = SampleDataset(source["train"], stage.data, stage.training.seed, train=True)
    eval_data = SampleDataset(source["val"], stage.data, stage.training.seed, train=False)

    def batches(first_step: int) -> Iterator[Batch]:
        order = _train_order(stage, source["train"])
        keys = TrainBatches(
            order,
            global_batch=stage.training.global_batch,
            accumulation=stage.training.accumulation,
            rank=rank,
            world=world,
            first_step=first_step,
            end_step=length.total,
        )
        loaders = stage.cluster.loader_workers
        return prefetch(build_loader(train_data, keys, task.collate("train"), workers=loaders, device=device), device)

    def evaluation(model: nn.Module) -> dict[str, float]:
        return evaluate(task, model, _eval_batches(plan, eval_data), plan.autocast())

    def save(state: TrainState, value: float | None) -> None:
        if rank == 0:
            writer.submit(state.snapshot(), value if value == value else None)
            if assignment.stored_first:
                writer.wait()
        sender.flush()
        state.forget_old_records()

    def name_bad(files: dict[str, str]) -> None:
        if rank == 0:
            try:
                add_bad_samples(assignment.run_folder, files)
            except OSError as error:  # as for a checkpoint: a full disk must not end training
                logger.error("%s was not written: %s", BAD_SAMPLES, error)

    try:
        outcome = train(plan, state, Effects(batches, evaluation, sender.add, save, name_bad))
    finally:  # a process that trains many runs must not be left with threads of those that ended early
        writer.wait()
        sampler.stop()
    sender.flush()
    return _result(outcome, state, writer) if rank == 0 else {}


def _train_order(stage: Stage, source: Source) -> TrainOrder:
    data, seed = stage.data, stage.training.seed
    if isinstance(data, CocoInstances) and data.group_by_aspect and source.annotations is not None:
        heights, widths = source.annotations.sizes.T
        landscape = (widths >= heights).astype(np.int64)
        return TrainOrder(len(source), 1, seed, groups=landscape, batch=stage.training.global_batch)
    return TrainOrder(len(source), data.repeats if isinstance(data, ImageFolder) else 1, seed)


def _eval_batches(plan: Plan, data: SampleDataset) -> Iterator[Batch]:
    """This rank's share of the validation split, in batches as large as a training micro-batch."""
    training = plan.stage.training
    size = max(1, training.global_batch // (plan.world * training.accumulation))
    keys = eval_batches(len(data), plan.rank, plan.world, size)
    loaders = plan.stage.cluster.loader_workers
    loader = build_loader(data, keys, plan.task.collate("val"), workers=loaders, device=plan.device)
    return prefetch(loader, plan.device)


def _evaluate_only(plan: Plan, source: Source, assignment: Assignment) -> dict[str, Any]:
    """Figures of given weights on the validation split, with the recipe's test-time augmentation."""
    model = together(lambda: _given_model(plan, assignment))
    data = SampleDataset(source, plan.task.augmented_data, plan.stage.training.seed, train=False)
    model = model.to(plan.device)
    return {"metrics": evaluate(plan.task, model, _eval_batches(plan, data), plan.autocast(), augmented=True)}


def _given_model(plan: Plan, assignment: Assignment) -> nn.Module:
    """The task's model with all of `init_weights`."""
    model = plan.task.build_model()
    with local_copy(str(assignment.init_weights)) as path:
        content = Path(path).read_bytes()
    _check_sum(assignment, hashlib.sha256(content).hexdigest())
    model.load_state_dict(safetensors.torch.load(content))
    return model


def _check_sum(assignment: Assignment, found: str) -> None:
    if assignment.init_sha256 and found != assignment.init_sha256:
        raise UserError(
            f"these are not the weights that the job was started with: expected sha256 {assignment.init_sha256}, "
            f"found {found}",
            where=str(assignment.init_weights),
            fix="submit again if the file was replaced; otherwise make it the same file on every node",
        )


def _result(outcome: Outcome, state: TrainState, writer: BackgroundWriter) -> dict[str, Any]:
    if outcome.reason in ("not finite", "bad samples"):
        fix = {
            "not finite": "lower optimizer.lr, set optimizer.clip_norm or lengthen the warm-up, then submit again",
            "bad samples": f"mend or remove the files, all named in the run's {BAD_SAMPLES}, or raise "
            "data.max_bad_fraction",
        }[outcome.reason]
        return {"error": [outcome.detail, "", fix]}
    if writer.failed:
        return {"error": [writer.failed, writer.store.folder, "free space and submit again: training resumes"]}
    detail = "; ".join(filter(None, [outcome.detail, writer.missing_best(state.best_step)]))
    return {"reason": outcome.reason, "detail": detail, **state.summary()}


def _configure_torch(stage: Stage) -> None:
    threads = max(1, int(stage.cluster.cpus_per_worker))
    torch.set_num_threads(threads)
    if stage.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # with warn_only the fused attentions stay nondeterministic although they could be otherwise
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.benchmark = not stage.training.deterministic
    # depth-wise kernels have gradients in NHWC order: copying those few kilobytes into the bucket is what we want
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


@contextmanager
def _nondeterminism() -> Iterator[list[str]]:
    """Collects what torch says of operations without a deterministic implementation; other warnings are shown."""
    said: list[str] = []

    def show(message: Warning | str, *where: Any, **options: Any) -> None:
        text = str(message)
        if "deterministic" not in text:
            show_others(message, *where, **options)
        elif (claim := text.partition(", but you set")[0].strip()) not in said:
            said.append(claim)

    with warnings.catch_warnings():  # puts back the filters and `showwarning`
        show_others, warnings.showwarning = warnings.showwarning, show
        warnings.filterwarnings("default", message=".*deterministic")
        yield said


def _open(
    stage: Stage, assignment: Assignment, device: torch.device, rank: int, world: int
) -> tuple[Plan, dict[SplitName, Source]]:
    """The stage's data and task as this rank sees them."""
    root = Path(assignment.root)
    train_source, val_source = open_source(stage.data, "train", root), open_source(stage.data, "val", root)
    task = build_task(stage, train_source.classes)
    length = Length.of(stage, len(train_source))
    plan = Plan(stage, length, task, device, rank, world, assignment.metric, assignment.lower_is_better)
    return plan, {"train": train_source, "val": val_source}


def together(action: Callable[[], T]) -> T:
    """Do a part of the set-up that can fail on one rank alone; its failure is raised on all ranks.

    Without it the others would wait for the failed one in their next collective.
    """
    result: T | None = None
    failure: tuple[str, str, str] | None = None
    try:
        result = action()
    except UserError as error:
        failure = (error.what, error.where, error.fix)
    failures = [failure]
    if world_size() > 1:
        failures = [None] * world_size()
        dist.all_gather_object(failures, failure)
    for what, where, fix in filter(None, failures):
        raise UserError(what, where=where, fix=fix)
    return cast("T", result)


def _prepare_storage(plan: Plan, store: CheckpointStore, state: TrainState) -> None:
    if plan.rank == 0:
        store.remove_torn()
        store.check_space(state.snapshot_bytes(), plan.stage.training.keep)


def _initial_or_restored(
    plan: Plan, restored: tuple[str, Snapshot] | None, assignment: Assignment
) -> tuple[TrainState, str]:
    """The state to go on from, and what it is. Precedence: own checkpoint, then `model.init`, then random weights."""
    stage = plan.stage
    start = f"random weights (seed {stage.training.seed})"
    torch.manual_seed(seeds.derive(stage.training.seed))
    model = plan.task.build_model()
    if restored is None and assignment.init_weights is not None:
        with local_copy(assignment.init_weights) as weights:
            report = load_initial(plan.task.backbone(model), weights, keep_head=assignment.keep_head)
        _check_sum(assignment, report.sha256)
        start = f"initial weights: {report}"
    if plan.device.type == "cuda" and plan.world > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(plan.device)
    if stage.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    decay = stage.training.ema_decay
    state = TrainState(
        model, build_optimizer(model, stage.optimizer), None if decay is None else ModelEmaV3(model, decay=decay)
    )
    if restored is not None:
        name, snapshot = restored
        state.restore(snapshot)
        start = f"resumed at step {snapshot.step} from {name}"
    return state, start


def _newest_for_all(plan: Plan, store: CheckpointStore) -> tuple[str, Snapshot] | None:
    """Name and content of the newest valid checkpoint, chosen by rank 0 for all ranks; None for a fresh start."""
    found = together(lambda: store.newest() if plan.rank == 0 else None)
    if plan.world == 1:
        return found
    choice = [found[0] if found else None]
    dist.broadcast_object_list(choice, src=0)
    if found is not None or choice[0] is None:
        return found
    return choice[0], store.read(choice[0])


class _PacedSender:
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


def run_on_ray(config: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's worker function: find rank and device, run, and report through Ray."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    started = time.time()

    def send(records: list[Record], node: dict[str, float]) -> None:
        ray.train.report(
            {
                "records": [record.as_dict() for record in records] if context.get_world_rank() == 0 else [],
                "node": {"rank": context.get_node_rank(), **node} if context.get_local_rank() == 0 else {},
            }
        )

    device = ray.train.torch.get_device()
    result = run(Assignment(**config), context.get_world_rank(), context.get_world_size(), device, send)
    return {**result, "world": context.get_world_size(), "attempt_seconds": time.time() - started}
