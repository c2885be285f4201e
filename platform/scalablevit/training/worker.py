"""The code that runs on each rank: prepares data, state and recovery of a recipe's stage, and runs the loop."""

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
from scalablevit.models.cpu_linear import evaluated_library, use_library
from scalablevit.models.weights import load_init_weights
from scalablevit.run_files import BAD_SAMPLES, START_NOTE
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.training import seeds
from scalablevit.training.attempt_events import StartupTimings
from scalablevit.training.callbacks import PreemptionPoller, Send, WorkerCallbacks, eval_batches_of
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.collectives import latest_checkpoint_for_all_ranks, run_on_all_ranks
from scalablevit.training.data_listing import open_stored
from scalablevit.training.device_name import device_name
from scalablevit.training.evaluate import evaluate
from scalablevit.training.library_choice import library_for_all_ranks
from scalablevit.training.loop import TrainContext, TrainResult, train
from scalablevit.training.optim import build_optimizer
from scalablevit.training.pace import pace_of
from scalablevit.training.state import Record, Snapshot, TrainState
from scalablevit.training.storage import local_copy, put_text
from scalablevit.training.worker_result import TrainingEnd, WorkerResult


@dataclass(frozen=True)
class WorkerConfig:
    """The configuration of a rank, as plain values that can be sent anywhere."""

    stage: str
    """The stage as JSON."""
    run_folder: str
    """The run's folder in run storage: a path or an address."""
    root: str
    """The platform's root folder; relative data paths resolve against it."""
    init_weights: str | None
    """File of initial weights (path or address), or a timm tag, as the driver resolved it; None: random weights."""
    init_sha256: str = ""
    """SHA-256 that the file of initial weights must have; empty: not known beforehand."""
    keep_head: bool = True
    """Whether to load a head whose shapes fit; False when it is known to be for other classes."""
    evaluate_only: bool = False
    """Only evaluate `init_weights`, which must be complete, and train nothing."""
    metric: str = ""
    """Name of the metric by which evaluations are compared; empty: the task's `best_metric`."""
    lower_is_better: bool = False
    """Whether a lower value of that metric is better."""
    data_listing: str = ""
    """Folder with the driver's listing of the data (`training.data_listing`); empty: this process lists the data."""
    user_code: dict[str, str] = field(default_factory=dict)
    """Content sum by name of each package of the stage's `imports`, as on the driver."""
    stored_first: bool = False
    """Report an evaluation only after its checkpoint is stored: a scheduler that then stops the run relies on it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for Ray's `train_loop_config`."""
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
    """Train one stage on this rank, from the newest checkpoint if there is one, and return the result.

    A UserError is returned in the result, not raised.

    Args:
        worker_config: the configuration, equal on all ranks.
        rank: this rank, from 0.
        world: number of ranks.
        device: this rank's device.
        send: reports records and this node's metrics.
        about_to_go: returns whether a node is about to be taken away; all ranks call it at the same steps and get the
            same result.
        timings: times of the attempt's start, filled in here.
    """
    try:
        with _collect_nondeterminism() as warnings_seen:
            timings = timings or StartupTimings(time.time())
            poller = PreemptionPoller(about_to_go, timings, pace_of(world).notice_s)
            result = _run(worker_config, rank, world, device, send, poller)
            return replace(result, nondeterministic=warnings_seen)
    except UserError as error:
        # returned, not raised: it is the same on every rank, and a restart would only repeat it; a new exception, since
        # the traceback of this one keeps the model alive
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
    snapshot = None if restored is None else restored[1]
    library = library_for_all_ranks(stage, snapshot, worker_config.run_folder, rank, device)
    state, start = run_on_all_ranks(lambda: _initial_or_restored(context, restored, worker_config))
    state.cpu_linear = library
    for model in (state.model, state.evaluated):
        use_library(model, library)
    poller.timings.built = time.time()
    poller.timings.from_step = state.step
    run_on_all_ranks(lambda: _prepare_storage(context, store, state))
    if rank == 0:
        poller.timings.passed_over = store.note_on_passed_over(state.step)
        put_text(worker_config.run_folder, START_NOTE, "; ".join(filter(None, (start, poller.timings.passed_over))))
    callbacks = WorkerCallbacks(
        context, state, source, store, send, poller, worker_config.run_folder, stored_first=worker_config.stored_first
    )
    try:
        if stage.training.nonfinite.action == "rollback" and restored is None:
            callbacks.save(state, None)  # a roll-back may come in the first steps
        train_result = train(context, state, callbacks)
    except UserError:  # on all ranks alike, so that all can report what was not reported yet
        callbacks.sender.flush()
        raise
    finally:  # a process that trains many runs must not keep the threads of those that ended early
        callbacks.close()
    callbacks.sender.flush()
    return _result(train_result, state, callbacks.writer, device) if rank == 0 else WorkerResult()


def _evaluate_only(context: TrainContext, source: Source, worker_config: WorkerConfig) -> WorkerResult:
    """Return the metrics of `init_weights` on the validation split, with the recipe's test-time augmentation."""
    model = run_on_all_ranks(lambda: _load_model(context, worker_config))
    stage, task = context.stage, context.task
    augmentation = task_kind(stage.task.kind).build_augmentation(stage, task.classes)
    data_section = stage.data if augmentation is None else augmentation.data
    data = SampleDataset(source, data_section, stage.training.seed, train=False)
    model = model.to(context.device)
    batches, registered = eval_batches_of(context, data), registered_metrics(stage)
    most = stage.data.max_bad_fraction * len(data)
    metrics = evaluate(
        task,
        model,
        batches,
        context.autocast(),
        most_bad=most,
        test_time_augmentation=augmentation,
        registered_metrics=registered,
    )
    return WorkerResult(metrics=metrics)


def _load_model(context: TrainContext, worker_config: WorkerConfig) -> nn.Module:
    """Return the task's model with all of `init_weights`."""
    model = context.task.build_model()
    with local_copy(str(worker_config.init_weights)) as path:
        content = Path(path).read_bytes()
    _check_sum(worker_config, hashlib.sha256(content).hexdigest())
    model.load_state_dict(safetensors.torch.load(content))
    use_library(model, evaluated_library(context.stage))
    _compile(context, model)
    return model


def _check_sum(worker_config: WorkerConfig, sha256: str) -> None:
    if worker_config.init_sha256 and sha256 != worker_config.init_sha256:
        raise UserError(
            f"these are not the weights that the job was started with: expected sha256 {worker_config.init_sha256}, "
            f"found {sha256}",
            where=str(worker_config.init_weights),
            fix="submit again if the file was replaced; otherwise make it the same file on every node",
        )


def _result(
    train_result: TrainResult, state: TrainState, writer: BackgroundWriter, device: torch.device
) -> WorkerResult:
    if train_result.reason in ("not finite", "bad samples"):
        fix = {
            "not finite": "lower optimizer.lr, set optimizer.clip_norm or lengthen the warm-up; or go on from the last "
            "checkpoint with training.nonfinite.action=skip or rollback",
            "bad samples": f"fix or remove the files, all named in the run's {BAD_SAMPLES}, or raise "
            "data.max_bad_fraction",
        }[train_result.reason]
        return WorkerResult(error=UserError(train_result.detail, fix=fix))
    if writer.failed and train_result.reason != "node leaving":
        fix = "free space and submit again: training resumes"
        return WorkerResult(error=UserError(writer.failed, where=writer.store.folder, fix=fix))
    detail = "; ".join(filter(None, [train_result.detail, writer.failed, writer.missing_best(state.best_step)]))
    return WorkerResult(
        TrainingEnd(**vars(state.summary()), reason=train_result.reason, detail=detail, device=device_name(device))
    )


def configure_torch(stage: Stage) -> None:
    """Set torch's threads, determinism and choice of kernels as the recipe asks for them."""
    threads = max(1, int(stage.cluster.cpus_per_worker))
    torch.set_num_threads(threads)
    if stage.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        # with warn_only the fused attentions stay nondeterministic although deterministic ones exist
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.benchmark = not stage.training.deterministic
    # gradients of depth-wise kernels are in NHWC order: to copy those few kilobytes into the bucket is intended
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")


@contextmanager
def _collect_nondeterminism() -> Iterator[list[str]]:
    """Yield a list that collects torch's warnings about nondeterministic operations; other warnings are shown."""
    collected: list[str] = []

    def show(message: Warning | str, *where: Any, **options: Any) -> None:
        text = str(message)
        if "deterministic" not in text:
            show_others(message, *where, **options)
        elif (claim := text.partition(", but you set")[0].strip()) not in collected:
            collected.append(claim)

    with warnings.catch_warnings():  # restores the filters and `showwarning`
        show_others, warnings.showwarning = warnings.showwarning, show
        warnings.filterwarnings("default", message=".*deterministic")
        yield collected


def _open(
    stage: Stage, worker_config: WorkerConfig, device: torch.device, rank: int, world: int
) -> tuple[TrainContext, dict[SplitName, Source]]:
    """Return the context of this rank's training, and the stage's data by split.

    Raises:
        UserError: the stage cannot be trained, or its data cannot be opened.
    """
    if not worker_config.evaluate_only:
        task_kind(stage.task.kind).check_training(stage)
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
    """Return the state to start from, and its description: own checkpoint, else `model.init`, else random weights."""
    stage = context.stage
    start = f"random weights (seed {stage.training.seed})"
    torch.manual_seed(seeds.derive(stage.training.seed))
    model = context.task.build_model()
    if restored is None and worker_config.init_weights is not None:
        with local_copy(worker_config.init_weights) as weights:
            report = load_init_weights(context.task.backbone(model), weights, keep_head=worker_config.keep_head)
        _check_sum(worker_config, report.sha256)
        start = f"initial weights: {report}"
    state = new_state(context, model)
    if restored is not None:
        name, snapshot = restored
        state.restore(snapshot)
        start = f"resumed at step {snapshot.step} from {name}"
    return state, start


def new_state(context: TrainContext, model: nn.Module) -> TrainState:
    """Return the state before the first step, on the context's device.

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
    """Compile blocks of models if `training.compile` asks for it; `loop.distributed` compiles whole models."""
    mode = context.stage.training.compile
    if mode:
        try_compiler(context.device)
    if mode == "blocks":
        for model in models:
            compile_blocks(context.task.backbone(model), context.stage.model.name, one_size=context.task.one_size)


def run_on_ray(worker_config: WorkerConfig, entered: float) -> WorkerResult:
    """Run on this Ray Train worker, with Ray's rank and device and reports through Ray, and return the result.

    Args:
        worker_config: the configuration, equal on all ranks.
        entered: when Ray called this worker, before this module was imported; seconds since the epoch.
    """
    import ray.train
    import ray.train.torch

    from scalablevit.tracking.callback import WorkerReport

    train: Any = ray.train  # type checkers see the types of Ray Train's first version
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    timings = StartupTimings(entered, imported=time.time(), world=world)
    timings_sent = False

    def send(records: list[Record], node: dict[str, float]) -> None:
        nonlocal timings_sent
        report: WorkerReport = {
            "records": [record.as_dict() for record in records] if rank == 0 else [],
            "node": {"rank": context.get_node_rank(), **node} if context.get_local_rank() == 0 else {},
        }
        if rank == 0 and timings.first_step and not timings_sent:
            report["started"] = asdict(timings)
            timings_sent = True
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
