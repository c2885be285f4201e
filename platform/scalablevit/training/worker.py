"""What runs on each rank: from a recipe's stage to the loop, with data, state and recovery in place."""

import hashlib
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from scalablevit.config.data import SPLITS, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.extensions import registered_metrics
from scalablevit.config.recipe import Length, Stage
from scalablevit.config.user_code import stage_from_json
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_source
from scalablevit.models.compilation import compile_blocks, try_compiler
from scalablevit.models.weights import load_initial
from scalablevit.run_files import BAD_SAMPLES, START_NOTE
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.training import seeds
from scalablevit.training.attempt_events import StartupTimings
from scalablevit.training.callbacks import PreemptionPoller, Send, WorkerCallbacks, eval_batches_of
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.collectives import latest_checkpoint_for_all_ranks, run_on_all_ranks
from scalablevit.training.data_listing import open_stored
from scalablevit.training.evaluate import evaluate
from scalablevit.training.loop import TrainContext, TrainResult, train
from scalablevit.training.optim import build_optimizer
from scalablevit.training.state import Record, Snapshot, TrainState
from scalablevit.training.storage import local_copy, put_text
from scalablevit.training.worker_result import TrainingEnd, WorkerResult


@dataclass(frozen=True)
class WorkerConfig:
    """The configuration of a rank, as plain values that can be sent anywhere."""

    stage: str
    """The stage as JSON."""
    run_folder: str
    """Where the run's checkpoints are: a path or an address."""
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
    data_listing: str = ""
    """Folder in which the driver left what it listed (`training.data_listing`); empty: this process lists the data."""
    user_code: dict[str, str] = field(default_factory=dict)
    """Content sum of each package of the stage's `imports`, by name, as the driver has them."""
    stored_first: bool = False
    """Hand an evaluation on only when its checkpoint is stored: whoever stops a run upon it can rely on that."""

    def as_dict(self) -> dict[str, Any]:
        """For Ray's `train_loop_config`."""
        return asdict(self)


def run(
    worker_config: WorkerConfig,
    rank: int,
    world: int,
    device: torch.device,
    send: Send,
    *,
    about_to_go: Callable[[], bool] = lambda: False,
    timings: StartupTimings | None = None,
) -> WorkerResult:
    """Train one stage on this rank, from the newest checkpoint if there is one.

    Args:
        about_to_go: whether a node is about to be taken away; every rank asks at the same steps and gets the same
            answer.
        timings: filled in while the attempt starts.
    """
    try:
        with _nondeterminism() as said:
            poller = PreemptionPoller(about_to_go, timings or StartupTimings(time.time()))
            result = _run(worker_config, rank, world, device, send, poller)
            return replace(result, nondeterministic=said)
    except UserError as error:
        # returned, not raised: it is the same on every rank, and a restart would only repeat it; a new one, since the
        # traceback of this one holds the model
        return WorkerResult(error=UserError(error.what, where=error.where, fix=error.fix))


def _run(
    worker_config: WorkerConfig, rank: int, world: int, device: torch.device, send: Send, poller: PreemptionPoller
) -> WorkerResult:
    stage = run_on_all_ranks(lambda: stage_from_json(worker_config.stage, worker_config.user_code))
    configure_torch(stage)
    context, source = run_on_all_ranks(lambda: _open(stage, worker_config, device, rank, world))
    poller.timings.opened = time.time()
    if worker_config.evaluate_only:
        return _evaluate_only(context, source["val"], worker_config)
    store = CheckpointStore(worker_config.run_folder)
    restored = latest_checkpoint_for_all_ranks(store, rank)
    state, start = run_on_all_ranks(lambda: _initial_or_restored(context, restored, worker_config))
    poller.timings.built = time.time()
    poller.timings.from_step = state.step
    run_on_all_ranks(lambda: _prepare_storage(context, store, state))
    if rank == 0:
        put_text(worker_config.run_folder, START_NOTE, start)
    callbacks = WorkerCallbacks(
        context, state, source, store, send, poller, worker_config.run_folder, stored_first=worker_config.stored_first
    )
    try:
        if stage.training.nonfinite.action == "rollback" and restored is None:
            callbacks.save(state, None)  # the first steps may be those to go back from
        outcome = train(context, state, callbacks)
    finally:  # a process that trains many runs must not be left with threads of those that ended early
        callbacks.close()
    callbacks.sender.flush()
    return _result(outcome, state, callbacks.writer) if rank == 0 else WorkerResult()


def _evaluate_only(context: TrainContext, source: Source, worker_config: WorkerConfig) -> WorkerResult:
    """Metrics of given weights on the validation split, with the recipe's test-time augmentation."""
    model = run_on_all_ranks(lambda: _given_model(context, worker_config))
    stage, task = context.stage, context.task
    augmentation = task_kind(stage.task.kind).build_augmentation(stage, task.classes)
    seen = stage.data if augmentation is None else augmentation.data
    data = SampleDataset(source, seen, stage.training.seed, train=False)
    model = model.to(context.device)
    batches, registered = eval_batches_of(context, data), registered_metrics(stage)
    return WorkerResult(
        metrics=evaluate(task, model, batches, context.autocast(), augmentation=augmentation, registered=registered)
    )


def _given_model(context: TrainContext, worker_config: WorkerConfig) -> nn.Module:
    """The task's model with all of `init_weights`."""
    model = context.task.build_model()
    with local_copy(str(worker_config.init_weights)) as path:
        content = Path(path).read_bytes()
    _check_sum(worker_config, hashlib.sha256(content).hexdigest())
    model.load_state_dict(safetensors.torch.load(content))
    _compile(context, model)
    return model


def _check_sum(worker_config: WorkerConfig, found: str) -> None:
    if worker_config.init_sha256 and found != worker_config.init_sha256:
        raise UserError(
            f"these are not the weights that the job was started with: expected sha256 {worker_config.init_sha256}, "
            f"found {found}",
            where=str(worker_config.init_weights),
            fix="submit again if the file was replaced; otherwise make it the same file on every node",
        )


def _result(outcome: TrainResult, state: TrainState, writer: BackgroundWriter) -> WorkerResult:
    if outcome.reason in ("not finite", "bad samples"):
        fix = {
            "not finite": "lower optimizer.lr, set optimizer.clip_norm or lengthen the warm-up; or go on from the last "
            "checkpoint with training.nonfinite.action=skip or rollback",
            "bad samples": f"fix or remove the files, all named in the run's {BAD_SAMPLES}, or raise "
            "data.max_bad_fraction",
        }[outcome.reason]
        return WorkerResult(error=UserError(outcome.detail, fix=fix))
    if writer.failed and outcome.reason != "node leaving":
        fix = "free space and submit again: training resumes"
        return WorkerResult(error=UserError(writer.failed, where=writer.store.folder, fix=fix))
    detail = "; ".join(filter(None, [outcome.detail, writer.failed, writer.missing_best(state.best_step)]))
    return WorkerResult(TrainingEnd(**vars(state.summary()), reason=outcome.reason, detail=detail))


def configure_torch(stage: Stage) -> None:
    """Threads, determinism and kernels as the recipe asks for them."""
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
    stage: Stage, worker_config: WorkerConfig, device: torch.device, rank: int, world: int
) -> tuple[TrainContext, dict[SplitName, Source]]:
    """The stage's data and task as this rank sees them."""
    root = Path(worker_config.root)
    splits: tuple[SplitName, ...] = ("val",) if worker_config.evaluate_only else SPLITS
    if worker_config.data_listing:
        sources = {split: open_stored(stage.data, split, root, worker_config.data_listing) for split in splits}
    else:
        sources = {split: open_source(stage.data, split, root) for split in splits}
    task = build_task(stage, sources["val"].classes)
    length = Length.of(stage, len(sources[splits[0]]))
    context = TrainContext(
        stage, length, task, device, rank, world, worker_config.metric, worker_config.lower_is_better
    )
    return context, sources


def _prepare_storage(context: TrainContext, store: CheckpointStore, state: TrainState) -> None:
    if context.rank == 0:
        store.remove_incomplete()
        store.check_space(state.snapshot_bytes(), context.stage.training.keep)


def _initial_or_restored(
    context: TrainContext, restored: tuple[str, Snapshot] | None, worker_config: WorkerConfig
) -> tuple[TrainState, str]:
    """The state to go on from, and what it is. Precedence: own checkpoint, then `model.init`, then random weights."""
    stage = context.stage
    start = f"random weights (seed {stage.training.seed})"
    torch.manual_seed(seeds.derive(stage.training.seed))
    model = context.task.build_model()
    if restored is None and worker_config.init_weights is not None:
        with local_copy(worker_config.init_weights) as weights:
            report = load_initial(context.task.backbone(model), weights, keep_head=worker_config.keep_head)
        _check_sum(worker_config, report.sha256)
        start = f"initial weights: {report}"
    state = new_state(context, model)
    if restored is not None:
        name, snapshot = restored
        state.restore(snapshot)
        start = f"resumed at step {snapshot.step} from {name}"
    return state, start


def new_state(context: TrainContext, model: nn.Module) -> TrainState:
    """The state before the first step, on the context's device.

    Raises:
        UserError: the recipe wants torch.compile, and it does not work here.
    """
    stage = context.stage
    if context.device.type == "cuda" and context.world > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(context.device)
    if stage.model.channels_last:
        model = model.to(memory_format=torch.channels_last)
    decay = stage.training.ema_decay
    ema = None if decay is None else ModelEmaV3(model, decay=decay, use_warmup=stage.training.ema_warmup)
    state = TrainState(model, build_optimizer(model, stage.optimizer), ema)
    _compile(context, *{state.model, state.evaluated})
    return state


def _compile(context: TrainContext, *models: nn.Module) -> None:
    """Prepare models for `training.compile`, whose whole form `loop.distributed` makes."""
    wanted = context.stage.training.compile
    if wanted:
        try_compiler(context.device)
    if wanted == "blocks":
        for model in models:
            compile_blocks(context.task.backbone(model), context.stage.model.name, one_size=context.task.one_size)


def run_on_ray(worker_config: WorkerConfig, entered: float) -> WorkerResult:
    """Run on this Ray Train worker: find rank and device, run, and report through Ray.

    Args:
        worker_config: of the run.
        entered: when Ray called, before this module was imported; seconds since the epoch.
    """
    import ray.train
    import ray.train.torch

    from scalablevit.tracking.callback import WorkerReport

    train: Any = ray.train  # statically it has the types of Ray Train's first version
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    timings = StartupTimings(entered, imported=time.time(), world=world)
    told = False

    def send(records: list[Record], node: dict[str, float]) -> None:
        nonlocal told
        report: WorkerReport = {
            "records": [record.as_dict() for record in records] if rank == 0 else [],
            "node": {"rank": context.get_node_rank(), **node} if context.get_local_rank() == 0 else {},
        }
        if rank == 0 and timings.first_step and not told:
            report["started"] = asdict(timings)
            told = True
        ray.train.report(dict(report))

    return run(
        worker_config,
        rank,
        world,
        ray.train.torch.get_device(),
        send,
        about_to_go=lambda: train.get_preemption_info() is not None,
        timings=timings,
    )
