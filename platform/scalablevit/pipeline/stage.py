"""One stage from its resolved recipe to a registered model: skip, resume or train, then register."""

import json
import shlex
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from scalablevit.config.commands import command_line
from scalablevit.config.errors import UserError
from scalablevit.config.run_hash import hashed_part
from scalablevit.config.stored import to_store
from scalablevit.config.task_info import task_info
from scalablevit.pipeline.cluster import PACKAGE
from scalablevit.pipeline.export_weights import export_weights
from scalablevit.pipeline.init_weights import InitWeights
from scalablevit.pipeline.plots import begin_training_batch, draw_curves, draw_validation
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.lease import Lease
from scalablevit.runs.progress import Progress
from scalablevit.runs.result import WEIGHTS, StageResult, load_result, without_secrets
from scalablevit.runs.run_store import IDENTITY, RunStore
from scalablevit.runs.status import StatusFile, finish_late, read_status
from scalablevit.tracking import tags
from scalablevit.tracking.callback import OutboxCallback
from scalablevit.tracking.connection import brief
from scalablevit.tracking.environment import environment_info, pinned
from scalablevit.tracking.outbox import Outbox, Status, open_runs
from scalablevit.tracking.params import flat
from scalablevit.tracking.registry import version_of_run
from scalablevit.tracking.sync import REFUSED, OutboxSync

SERVING = "serving/model.py"
STATISTICS = "statistics.json"
"""In a stage's run folder: what its data holds (`data/statistics.py`)."""
SERVING_PACKAGES = ["mlflow", "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy",
                    "pillow", "simplejpeg", "faster-coco-eval", "pydantic", "pyyaml", "safetensors"]  # fmt: skip
DRAIN_S = 120.0
"""Longest wait at a stage's end for MLflow to take what is left; nothing is lost after it."""
FAILED_DRAIN_S = 20.0
"""The same when the stage failed or was interrupted: long enough for its end to be told."""


@dataclass(frozen=True)
class Job:
    """What the stages of one job share."""

    root: Path
    recipe: str
    uid: str
    """Of the parent run."""
    tracking_uri: str
    origins: dict[str, dict[str, str]] = field(default_factory=dict)
    """Tags by stage: where its values come from, on its run and its registered version."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set when the job was interrupted: whatever Ray then raises in the stages' threads, nothing failed."""
    training: set[Path] = field(default_factory=set)
    """Of each stage that trains the file whose appearance lets its workers save and end."""

    def stop_training(self) -> bool:
        """Let all that trains save and end; False: nothing does, or not all of it can be told."""
        self.stopping.set()
        told = bool(self.training)
        for file in tuple(self.training):
            try:
                file.touch()
            except OSError:  # a full disk, a folder that is gone
                told = False
        return told


def run_stage(job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult]) -> StageResult:
    """Bring a stage to its end, whatever state an earlier attempt left it in.

    Raises:
        UserError: another job owns the run, or training found something that the user must fix.
    """
    store = RunStore.open(resolved.run_name, resolved.stage.cluster.storage, job.root)
    with Lease(store) as lease:
        uid = identity(store)
        outbox = Outbox(store.local / "spool")
        sync = OutboxSync(store.local / "spool", job.tracking_uri)
        sync.start()
        failure: BaseException | None = None
        try:
            finished = load_result(store)
            if finished is not None:
                said = f"already finished: {finished.metric} {finished.value:.4f} at step {finished.step}"
                print(f"[{resolved.name}] {said} ({store.location})", flush=True)
                finish_late(store)
            else:
                last = _last_at_work(store)
                with StatusFile(
                    store, lease, resolved.name, resolved.length.total, "steps", job.tracking_uri, job.stopping
                ) as status_file:
                    finished = _train(job, resolved, earlier, store, outbox, uid, status_file, last)
            if uid in open_runs(store.local / "spool"):  # also when a kill came between the result and this
                _record_model(resolved, finished, store, outbox)
            return _registered(job, finished, store, sync)
        except BaseException as error:
            failure = error
            raise
        finally:
            clean_up(failure, *closing_steps(sync, outbox, FAILED_DRAIN_S if failure else None))


def closing_steps(sync: OutboxSync, outbox: Outbox, wait_s: float | None) -> list[tuple[str, Callable[[], object]]]:
    """Return steps for `clean_up` that send what an outbox holds and close both.

    Args:
        sync: of the outbox.
        outbox: at its end.
        wait_s: longest wait for MLflow to take what is left; None: no wait.
    """
    return [
        (f"sending {outbox.folder}", lambda: None if wait_s is None else sync.drain(wait_s)),
        (f"ending the sender of {outbox.folder}", sync.stop),
        (f"closing {outbox.folder}", outbox.close),
    ]


def _last_at_work(store: RunStore) -> float | None:
    """When an earlier job was last known to be at work on the run; None: there was none, or its status is damaged."""
    try:
        status = read_status(store.local)
    except UserError:
        return None
    return None if status is None else status.ended or status.updated


def identity(store: RunStore) -> str:
    """The run's uid, kept in run storage, so that a restart goes on in the same MLflow run."""
    known = store.read_json(IDENTITY)
    if known is None:
        known = {"uid": uuid.uuid4().hex, "created": time.time()}
        store.write_json(IDENTITY, known)
    return str(known["uid"])


def _train(
    job: Job,
    resolved: ResolvedStage,
    earlier: dict[str, StageResult],
    store: RunStore,
    outbox: Outbox,
    uid: str,
    status_file: StatusFile,
    last: float | None,
) -> StageResult:
    started, submitted = time.monotonic(), time.time()
    from scalablevit.training.attempts import ATTEMPTS, add_event

    initial = init_weights_of(resolved, earlier)
    add_event(store.local / ATTEMPTS, {"event": "submitted", "time": submitted, "last": last})
    _begin(job, resolved, initial, store, outbox, uid)
    status: Status = "FAILED"
    failure: BaseException | None = None
    drawing = begin_training_batch(resolved, store)
    try:
        outcome = _launch(job, resolved, initial, store, uid, status_file)
        minutes = (time.monotonic() - started) / 60
        lineage = {**(initial.lineage() if initial else {}), **job.origins.get(resolved.name, {})}
        finished = export_weights(job.recipe, resolved, lineage, store, uid, outcome, minutes)
        finished.save(store)
        status = "FINISHED"
    except BaseException as error:
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else status
        failure = error
        raise
    finally:
        if status != "FINISHED":
            status = "KILLED" if job.stopping.is_set() else status
            clean_up(failure, (f"recording the end of {store.name}", lambda: outbox.end(uid, status)))
        if status == "FAILED":  # how it came to that
            clean_up(failure, ("drawing the curves", lambda: draw_curves(resolved, store, uid)))
    for note in outcome.get("nondeterministic", []):
        print(f"[{resolved.name}] not deterministic: {note}", flush=True)
    drawing.join()
    if not job.stopping.is_set():  # who stops a job does not wait for pictures
        draw_curves(resolved, store, uid)
        draw_validation(resolved, store)
    return finished


def init_weights_of(resolved: ResolvedStage, earlier: dict[str, StageResult]) -> InitWeights | None:
    """The weights to start from: found with the recipe, or left by an earlier stage in run storage."""
    if not resolved.parents:
        return resolved.initial
    parent = earlier[resolved.parents[0]]
    version = f"{parent.registered_as}/{parent.version}" if parent.version else ""
    return InitWeights(f"{parent.folder}/{WEIGHTS}", parent.weights_sha256, parent.classes, version)


def _begin(
    job: Job, resolved: ResolvedStage, initial: InitWeights | None, store: RunStore, outbox: Outbox, uid: str
) -> None:
    """Record what is about to run, in the run's folder and for MLflow."""
    stage = without_secrets(resolved.stage)
    recipe = yaml.safe_dump(to_store(stage), sort_keys=False, allow_unicode=True)
    (store.local / "recipe.yaml").write_text(recipe, encoding="utf-8")
    environment = environment_info(PACKAGE)
    (store.local / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    artifacts = ["recipe.yaml", "environment.json"]
    if resolved.statistics is not None:
        (store.local / STATISTICS).write_text(resolved.statistics.to_json(), encoding="utf-8")
        artifacts.append(STATISTICS)
    facts = {
        tags.RECIPE_HASH: resolved.hash,
        tags.DATA_DIGEST: resolved.digest,
        tags.CODE_DIGEST: environment["code"]["digest"],
        "stage": resolved.name,
        "run_folder": store.location,
        **(initial.lineage() if initial else {}),
        **job.origins.get(resolved.name, {}),
        # not parameters: a restart may change them, and MLflow's parameters never change
        **flat(stage.cluster.model_dump(mode="json"), "cluster."),
    }
    outbox.run(uid, resolved.run_name, experiment=stage.tracking.experiment, parent=job.uid, tags=facts)
    outbox.params(uid, flat(hashed_part(stage)))
    counts = {"steps": resolved.length.total, "train_samples": resolved.train_samples,
              "val_samples": resolved.val_samples, "classes": len(resolved.classes)}  # fmt: skip
    outbox.params(uid, counts)
    source = str(job.root / Path(stage.data.root).expanduser())
    for split in ("train", "val"):
        outbox.dataset(uid, name=f"{resolved.name}-{split}", digest=resolved.digest, source=source, context=split)
    for name in artifacts:
        outbox.artifact(uid, store.local / name)


def _launch(
    job: Job, resolved: ResolvedStage, initial: InitWeights | None, store: RunStore, uid: str, status_file: StatusFile
) -> dict[str, Any]:
    from scalablevit.training.attempts import ATTEMPTS, AttemptsCallback
    from scalablevit.training.data_listing import store_listings
    from scalablevit.training.launch import STOP, launch
    from scalablevit.training.worker import WorkerConfig

    store_listings(store.location, resolved.sources)
    worker_config = WorkerConfig(
        stage=without_secrets(resolved.stage).model_dump_json(),
        run_folder=store.location,
        root=str(job.root),
        init_weights=initial.location if initial else None,
        init_sha256=initial.sha256 if initial else "",
        keep_head=initial is None or initial.keep_head(resolved.classes),
        data_listing=store.location,
    )
    metric = task_info(resolved.stage.task.kind).best_metric
    with Progress(store, uid, resolved.name, resolved.length.total, metric, status_file):
        callbacks = [OutboxCallback(store.local / "spool", uid), AttemptsCallback(store.local / ATTEMPTS)]
        stop_file = store.local / STOP
        stop_file.unlink(missing_ok=True)  # that of an earlier attempt
        job.training.add(stop_file)
        try:
            if job.stopping.is_set():  # while nothing trained that could have been told
                raise KeyboardInterrupt
            return launch(resolved.stage, worker_config.as_dict(), store.location, callbacks, stop_file)
        finally:
            job.training.discard(stop_file)


def _record_model(resolved: ResolvedStage, finished: StageResult, store: RunStore, outbox: Outbox) -> None:
    """Ask for registration and end the run; asking twice registers once."""
    chosen = f"{finished.metric}={finished.value:.6g} at step {finished.step}"
    outbox.tags(finished.uid, {"best": chosen, "checkpoint": f"{finished.folder}/checkpoints/{finished.checkpoint}"})
    outbox.model(
        finished.uid,
        name=finished.registered_as,
        folder=store.local / "model",
        package=PACKAGE,
        serving=SERVING,
        requirements=pinned([*SERVING_PACKAGES, *task_info(resolved.stage.task.kind).serving_packages]),
        tags={
            tags.RECIPE_HASH: resolved.hash,
            tags.DATA_DIGEST: resolved.digest,
            tags.METRIC: chosen,
            **finished.lineage,
        },
    )
    outbox.end(finished.uid, "FINISHED")


def _registered(job: Job, finished: StageResult, store: RunStore, sync: OutboxSync) -> StageResult:
    """Wait for MLflow to take what the stage recorded, and look up the version it gave; an outage only delays it."""
    command = f"{command_line('sync')} --root {shlex.quote(str(job.root))}"
    pending = sync.drain(DRAIN_S)
    if pending.records:
        return replace(finished, tracking=f"{sync.status()}; they are kept, and `{command}` sends them")
    try:
        version = version_of_run(job.tracking_uri, finished.registered_as, finished.uid)
    except Exception as error:  # whatever MLflow's client raises, the model is trained and its record is kept
        return replace(finished, tracking=f"{brief(error, job.tracking_uri)}; ask again by submitting again")
    if version:
        return replace(finished, version=version, tracking=sync.status())
    refused = store.local / "spool" / REFUSED
    why = f"refused, see {refused}" if pending.refused or refused.exists() else "not there although it was sent"
    return replace(finished, tracking=f"the registered version is {why}; `{sync} --again` sends everything again")
