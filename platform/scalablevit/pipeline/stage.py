"""Bring one resolved stage to a registered model: skip, resume or train it, then register the model."""

import json
import shlex
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scalablevit.config.commands import command_line
from scalablevit.config.errors import UserError
from scalablevit.config.packages import is_from_index
from scalablevit.config.recipe import Stage
from scalablevit.config.run_hash import hashed_part
from scalablevit.config.schedule import largest_rate
from scalablevit.config.stored import to_store
from scalablevit.config.task_info import task_info
from scalablevit.config.user_code import find_packages, package_contents, package_sums
from scalablevit.pipeline.cluster import PACKAGE
from scalablevit.pipeline.export_weights import export_weights
from scalablevit.pipeline.init_weights import InitWeights
from scalablevit.pipeline.model_card import Registry
from scalablevit.pipeline.plots import begin_training_batch, draw_curves, draw_validation
from scalablevit.pipeline.registration import notifier_of, record_model
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import ATTEMPTS, ENVIRONMENT, RECIPE, REFUSED, STATISTICS, WEIGHTS
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.console import say_while_waiting
from scalablevit.runs.metrics import IS_BEST, metrics_by_step
from scalablevit.runs.progress import Progress
from scalablevit.runs.result import StageResult, load_result, without_secrets
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.runs.status import StatusFile, mark_finished, read_status
from scalablevit.tasks.registry import task_kind
from scalablevit.tracking import tags
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.connection import format_error, mask
from scalablevit.tracking.environment import environment_info
from scalablevit.tracking.outbox import Outbox, Texts, lacks_finish, now_ms, recorded_params
from scalablevit.tracking.params import flatten
from scalablevit.tracking.registry import version_of_run

if TYPE_CHECKING:
    from scalablevit.training.worker_result import TrainingEnd, WorkerResult


@dataclass(frozen=True)
class Job:
    """What all stages of one job share."""

    root: Path
    """The platform's root."""
    recipe: str
    """Name of the recipe."""
    uid: str
    """Of the parent run in MLflow."""
    tracking_uri: str
    """MLflow's address."""
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    """By stage, tags for its run and its registered version that say which search found its values."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the job is interrupted: what Ray then raises in the stages' threads is no failure."""
    training: set[Path] = field(default_factory=set)
    """For each stage that trains, the file that makes its workers save and end once it exists."""

    def stop_training(self) -> bool:
        """Make all stages that train save and end; return False if none trains, or not all could be asked."""
        self.stopping.set()
        signalled = bool(self.training)
        for file in tuple(self.training):
            try:
                file.touch()
            except OSError:  # a full disk, a folder that is gone
                signalled = False
        return signalled


def run_stage(job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult]) -> StageResult:
    """Bring a stage to its end, whatever state an earlier attempt left it in, and return its result.

    Args:
        job: what the stages share.
        resolved: the stage.
        earlier: results of the stages before, by name.

    Raises:
        UserError: another job owns the run, or training found something that the user must fix.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
        KeyboardInterrupt: the workers saved and ended because the job was interrupted.
    """
    store = RunStore.open(resolved.run_name, resolved.stage.cluster.storage, job.root)
    with RunSession(store, job.tracking_uri) as session:
        finished = load_result(store)
        if finished is not None:
            message = f"already finished: {finished.metric} {finished.value:.4f} at step {finished.step}"
            print(f"[{resolved.name}] {message} ({store.location})", flush=True)
            mark_finished(store)
        else:
            finished = _train(job, resolved, earlier, session)
        if lacks_finish(store.outbox, session.uid):  # also if an earlier job was killed before this
            registry = Registry(job.root, job.tracking_uri)
            record_model(job.recipe, resolved, finished, store, session.outbox, registry)
        return _look_up_version(job, finished, session)


def _last_at_work(store: RunStore) -> float | None:
    """Return when an earlier job last worked on the run, in seconds since the epoch; None: not known, or none did."""
    try:
        status = read_status(store.local)
    except UserError:
        return None
    return None if status is None else status.ended or status.updated


def _train(job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult], session: RunSession) -> StageResult:
    """Train, export and draw a stage; return its result."""
    store, last = session.store, _last_at_work(session.store)
    try:
        notifier = notifier_of(resolved, store, job.root)
        with session.at_work(resolved.name, resolved.length.total, "steps", job.stopping, notifier) as status_file:
            drawing = begin_training_batch(resolved, store)
            finished, notes = _train_and_export(job, resolved, earlier, session, status_file, last)
    except Exception as failure:
        if not job.stopping.is_set():  # the curves show how it came to the failure
            clean_up(failure, ("drawing the curves", lambda: draw_curves(resolved, store, session.uid)))
        raise
    # the run is finished from here on, even if the drawing is interrupted
    for note in notes:
        print(f"[{resolved.name}] not deterministic: {note}", flush=True)
    drawing.join()
    if not job.stopping.is_set():  # whoever stops a job does not want to wait for plots
        with say_while_waiting(resolved.name, "plots and error analysis"):
            draw_curves(resolved, store, session.uid)
            draw_validation(resolved, store)
    return finished


def _train_and_export(
    job: Job,
    resolved: ResolvedStage,
    earlier: dict[str, StageResult],
    session: RunSession,
    status_file: StatusFile,
    last: float | None,
) -> tuple[StageResult, list[str]]:
    """Return the result, which is saved, and which operations were not deterministic."""
    started, submitted = time.monotonic(), time.time()
    from scalablevit.training.attempt_events import Submitted, add_event

    store, uid, init_weights = session.store, session.uid, init_weights_of(resolved, earlier)
    add_event(store.local / ATTEMPTS, Submitted(submitted, last))
    _begin(job, resolved, init_weights, store, session.outbox, uid)
    result = _launch(job, resolved, init_weights, session, status_file)
    if result.training is None:
        raise RuntimeError("rank 0 returned no end of the training")
    minutes = (time.monotonic() - started) / 60
    lineage = {**(init_weights.lineage() if init_weights else {}), **job.origins.get(resolved.name, {})}
    finished = export_weights(job.recipe, resolved, lineage, store, uid, result.training, minutes)
    finished.save(store)
    return finished, result.nondeterministic


def init_weights_of(resolved: ResolvedStage, earlier: dict[str, StageResult]) -> InitWeights | None:
    """Return the weights to start from: found with the recipe, or left in run storage by an earlier stage.

    Args:
        resolved: the stage.
        earlier: results of the stages before, by name.
    """
    if not resolved.parents:
        return resolved.init_weights
    parent = earlier[resolved.parents[0]]
    version = f"{parent.registered_as}/{parent.version}" if parent.version else ""
    return InitWeights(f"{parent.folder}/{WEIGHTS}", parent.weights_sha256, parent.classes, version)


def _begin(
    job: Job, resolved: ResolvedStage, init_weights: InitWeights | None, store: RunStore, outbox: Outbox, uid: str
) -> None:
    """Record what is about to run, in the run's folder and for MLflow."""
    stage = without_secrets(resolved.stage)
    recipe = yaml.safe_dump(to_store(stage), sort_keys=False, allow_unicode=True)
    (store.local / RECIPE).write_text(recipe, encoding="utf-8")
    environment = environment_info(PACKAGE)
    (store.local / ENVIRONMENT).write_text(json.dumps(environment, indent=1), encoding="utf-8")
    artifacts = [RECIPE, ENVIRONMENT]
    if resolved.statistics is not None:
        (store.local / STATISTICS).write_text(resolved.statistics.to_json(), encoding="utf-8")
        artifacts.append(STATISTICS)
    facts = {
        tags.RECIPE_HASH: resolved.hash,
        tags.DATA_DIGEST: resolved.digest,
        tags.CODE_DIGEST: environment["code"]["digest"],
        **tags.user_code(package_sums(stage.imports)),
        "stage": resolved.name,
        "run_folder": store.location,
        **(init_weights.lineage() if init_weights else {}),
        **job.origins.get(resolved.name, {}),
        # tags: a restart may change them, and MLflow does not let parameters change
        **flatten(stage.cluster.model_dump(mode="json"), "cluster."),
    }
    _keep_user_code(stage, outbox)
    outbox.run(uid, resolved.run_name, experiment=stage.tracking.experiment, parent=job.uid, tags=facts)
    outbox.params(uid, flatten(hashed_part(stage)))
    source = mask(str(job.root / Path(stage.data.root).expanduser()), job.tracking_uri)
    outbox.params(uid, resolved_values(resolved))
    if "data.root" not in recorded_params(outbox.folder, uid):  # a later attempt may find the data elsewhere
        outbox.params(uid, {"data.root": source})
    for split in ("train", "val"):
        outbox.dataset(uid, name=f"{resolved.name}-{split}", digest=resolved.digest, source=source, context=split)
    for name in artifacts:
        outbox.artifact(uid, store.local / name)


def resolved_values(resolved: ResolvedStage) -> Texts:
    """Return the parameters that data and task decide, by name; they are the same at every attempt."""
    length, optimizer = resolved.length, resolved.stage.optimizer
    return {
        "steps": length.total,
        "train_samples": resolved.train_samples,
        "val_samples": resolved.val_samples,
        "classes": len(resolved.classes),
        "resolved.epochs": f"{length.total / length.steps_per_epoch:.4g}",
        "resolved.warmup_steps": length.warmup,
        "resolved.evaluate_every_steps": length.evaluate_every,
        "resolved.largest_lr": f"{largest_rate(optimizer, length):.4g}",
        **{f"resolved.{key}": value for key, value in task_kind(resolved.stage.task.kind)
           .automatic_values(resolved.stage).items()},
    }  # fmt: skip


def _keep_user_code(stage: Stage, outbox: Outbox) -> None:
    """Copy the packages of the stage's imports as they are now: the registered model gets them.

    Those with compiled code, which may not run where the model is served, it names as requirements instead.

    Raises:
        UserError: files have changed since they were imported.
    """
    contents = package_contents(stage.imports)
    for package in find_packages(stage.imports):
        required = contents[package.name].requirements
        if required:
            local = "" if all(map(is_from_index, required)) else (
                "; pip installed it here from a file or an address: install the same on the server before the model, "
                "or pip finds none there, or somebody else's package of that name")  # fmt: skip
            print(f"note: {package.name} has compiled code ({package.compiled}): the registered model names "
                  f"{' and '.join(required)} as a requirement, and has no copy{local}", flush=True)  # fmt: skip
            continue
        try:
            outbox.keep_user_code(package.folder, contents[package.name].digest)
        except ValueError as error:
            raise UserError(
                f"{error} since this process imported it", where=str(package.folder), fix="submit the job again"
            ) from None


def _launch(
    job: Job,
    resolved: ResolvedStage,
    init_weights: InitWeights | None,
    session: RunSession,
    status_file: StatusFile,
) -> "WorkerResult":
    from scalablevit.training.attempts import AttemptsCallback
    from scalablevit.training.data_listing import store_listings
    from scalablevit.training.gauges import GaugeReader, GaugesCallback
    from scalablevit.training.launch import STOP, launch
    from scalablevit.training.worker import WorkerConfig

    store, uid = session.store, session.uid
    store_listings(store.location, resolved.sources)
    worker_config = WorkerConfig(
        stage=without_secrets(resolved.stage).model_dump_json(),
        run_folder=store.location,
        root=str(job.root),
        init_weights=init_weights.location if init_weights else None,
        init_sha256=init_weights.sha256 if init_weights else "",
        keep_head=init_weights is None or init_weights.keep_head(resolved.classes),
        data_listing=store.location,
        user_code=package_sums(resolved.stage.imports),
    )
    metrics = task_info(resolved.stage.task.kind).metrics_by_interest
    notifier = notifier_of(resolved, store, job.root)
    with Progress(
        store, uid, resolved.name, resolved.length.total, metrics, status_file, notifier, resolved.length.work
    ):
        batch_size = resolved.stage.training.global_batch_size
        reader = GaugeReader(store.local, store.location, uid, metrics[0], batch_size)
        callbacks = (
            OutboxCallback(store.outbox, uid),
            AttemptsCallback(store.local / ATTEMPTS),
            GaugesCallback({"run": store.name, "stage": resolved.name}, reader),
        )
        stop_file = store.local / STOP
        stop_file.unlink(missing_ok=True)  # left by an earlier attempt
        job.training.add(stop_file)
        try:
            if job.stopping.is_set():  # set before there was a file to create
                raise KeyboardInterrupt
            result = launch(resolved.stage, worker_config, store.location, callbacks, stop_file)
        finally:
            job.training.discard(stop_file)
        if result.training is not None:
            _record_missing(resolved.name, result.training, session)
        return result


def _record_missing(name: str, training: "TrainingEnd", session: RunSession) -> None:
    """Record the best and the last evaluation where the outbox lacks them: a full disk may have refused the reports."""
    rows = metrics_by_step(session.store.outbox, session.uid)
    for step, metrics in {training.best_step: training.best_metrics, training.step: training.last_metrics}.items():
        if step is not None and not metrics.keys() <= rows.get(step, {}).keys():
            values = {**metrics, IS_BEST: float(step == training.best_step)}
            session.outbox.metrics(session.uid, [{"step": step, "time_ms": now_ms(), "metrics": values}])
            print(f"[{name}] the evaluation of step {step} was not recorded when it was reported (a full disk?): it is "
                  "now, and other points may be missing", flush=True)  # fmt: skip


def _look_up_version(job: Job, finished: StageResult, session: RunSession) -> StageResult:
    """Wait for MLflow to take what the stage recorded, and add the registered version; an outage only delays it."""
    command = f"{command_line('sync')} --root {shlex.quote(str(job.root))}"
    with say_while_waiting(finished.name, "MLflow to take what the run recorded"):
        pending = session.drain()
    if pending.records:
        return replace(finished, tracking=f"{session.sync.status()}; they are kept, and `{command}` sends them")
    try:
        version = version_of_run(job.tracking_uri, finished.registered_as, finished.uid)
    except Exception as error:  # whatever MLflow's client raises: the model is trained, and its record is kept
        return replace(finished, tracking=f"{format_error(error, job.tracking_uri)}; ask again by submitting again")
    if version:
        return replace(finished, version=version, tracking=session.sync.status())
    refused = session.store.outbox / REFUSED
    why = f"refused, see {refused}" if pending.refused or refused.exists() else "not there although it was sent"
    return replace(finished, tracking=f"the registered version is {why}; `{command} --again` sends everything again")
