"""One stage from its resolved recipe to a registered model: resume or skip, train, export, register."""

import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scalablevit.config.errors import UserError
from scalablevit.config.loading import hashed_part
from scalablevit.config.recipe import Stage
from scalablevit.jobs.cluster import PACKAGE
from scalablevit.jobs.lease import Lease
from scalablevit.jobs.progress import Progress
from scalablevit.jobs.resolve import ResolvedStage
from scalablevit.jobs.run_store import RunStore
from scalablevit.tracking import tags
from scalablevit.tracking.callback import SpoolCallback
from scalablevit.tracking.environment import environment_info, pinned
from scalablevit.tracking.shipper import Shipper
from scalablevit.tracking.spool import Spool, Status, open_runs
from scalablevit.tracking.weights import resolve_weights
from scalablevit.training.checkpoint import CheckpointStore

RESULT = "result.json"
WEIGHTS = "model/weights.safetensors"
CONFIG = "model/config.json"
SERVING = "serving/model.py"
SERVING_PACKAGES = ["mlflow", "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy",
                    "pillow", "pydantic", "pyyaml", "safetensors"]  # fmt: skip
SEGMENTATION_PACKAGES = ["onedl-mmsegmentation", "onedl-mmcv", "onedl-mmengine"]
DRAIN_S = 120.0
"""Longest wait at a stage's end for MLflow to take what is left; nothing is lost after it."""


@dataclass(frozen=True)
class Job:
    """What the stages of one job share."""

    root: Path
    recipe: str
    uid: str
    """Of the parent run."""

    def tracking_uri(self, stage: Stage) -> str:
        """The stage's MLflow address."""
        return stage.tracking.uri or f"sqlite:///{self.root}/mlflow.db"


@dataclass(frozen=True)
class Initial:
    """The weights that a stage starts from."""

    location: str
    sha256: str
    keep_head: bool
    version: str = ""
    """`<name>/<version>` when they are registered."""


@dataclass(frozen=True)
class StageResult:
    """What a finished stage left behind: `result.json`."""

    name: str
    run_name: str
    uid: str
    folder: str
    metric: str
    value: float
    step: int
    metrics: dict[str, float]
    classes: tuple[str, ...]
    images_per_s: float
    minutes: float
    reason: str
    weights_sha256: str
    registered_as: str
    init: dict[str, str]
    """Tags of the weights that it started from."""
    skipped: bool = False
    version: str = ""
    """Registered version; empty while MLflow has not taken it."""
    tracking: str = ""
    """One line on what tracking still owes."""


def run_stage(job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult]) -> StageResult:
    """Bring a stage to its end, whatever state an earlier attempt left it in.

    Raises:
        UserError: another job owns the run, or training found something that the user must mend.
    """
    store = RunStore.open(resolved.run_name, resolved.stage.cluster.storage, job.root)
    with Lease(store):
        uid = identity(store)
        spool = Spool(store.local / "spool")
        shipper = Shipper(store.local / "spool", job.tracking_uri(resolved.stage))
        shipper.start()
        try:
            finished = load_result(store)
            if finished is not None:
                print(
                    f"[{resolved.name}] already finished: {finished.metric} {finished.value:.4f} at step "
                    f"{finished.step} ({store.location})",
                    flush=True,
                )
            else:
                finished = _train(job, resolved, earlier, store, spool, uid)
            if uid in open_runs(store.local / "spool"):  # also when a kill came between the result and this
                _record_model(resolved, finished, store, spool)
            return _registered(job, resolved, finished, shipper)
        finally:
            shipper.stop()
            spool.close()


def identity(store: RunStore) -> str:
    """The run's uid, kept in run storage, so that a restart goes on in the same MLflow run."""
    known = store.read_json("run.json")
    if known is None:
        known = {"uid": uuid.uuid4().hex, "created": time.time()}
        store.write_json("run.json", known)
    return str(known["uid"])


def load_result(store: RunStore) -> StageResult | None:
    """The result of a finished stage; None when it has not finished."""
    found = store.read_json(RESULT)
    return None if found is None else StageResult(**{**found, "classes": tuple(found["classes"]), "skipped": True})


def _train(
    job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult], store: RunStore, spool: Spool, uid: str
) -> StageResult:
    initial = find_initial(job, resolved, earlier)
    _begin(job, resolved, initial, store, spool, uid)
    started = time.monotonic()
    status: Status = "FAILED"
    try:
        result = _launch(job, resolved, initial, store, uid)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if status != "FINISHED":
            spool.end(uid, status)
    minutes = (time.monotonic() - started) / 60
    finished = _export(job, resolved, initial, store, uid, result, minutes)
    store.write_json(RESULT, {k: v for k, v in vars(finished).items() if k not in ("skipped", "version", "tracking")})
    return finished


def _record_model(resolved: ResolvedStage, finished: StageResult, store: RunStore, spool: Spool) -> None:
    """Ask for registration and end the run; asking twice registers once."""
    dense = resolved.stage.task.kind == "segmentation"
    spool.model(
        finished.uid,
        name=finished.registered_as,
        folder=store.local / "model",
        package=PACKAGE,
        serving=SERVING,
        requirements=pinned(SERVING_PACKAGES + (SEGMENTATION_PACKAGES if dense else [])),
        tags={
            tags.RECIPE_HASH: resolved.hash,
            tags.DATA_DIGEST: resolved.digest,
            tags.METRIC: f"{finished.metric}={finished.value:.6g} at step {finished.step}",
            **finished.init,
        },
    )
    spool.end(finished.uid, "FINISHED")


def _launch(job: Job, resolved: ResolvedStage, initial: Initial | None, store: RunStore, uid: str) -> dict[str, Any]:
    from scalablevit.training.launch import launch
    from scalablevit.training.worker import Assignment

    assignment = Assignment(
        stage=without_secrets(resolved.stage).model_dump_json(),
        run_folder=store.location,
        root=str(job.root),
        init_weights=initial.location if initial else None,
        keep_head=initial.keep_head if initial else True,
    )
    spool = store.local / "spool"
    with Progress(store.local, uid, resolved.name, resolved.length.total, BEST_METRIC[resolved.stage.task.kind]):
        return launch(resolved.stage, assignment.as_dict(), store.location, [SpoolCallback(spool, uid)])


BEST_METRIC = {"classification": "val/top1", "segmentation": "val/miou"}
"""Each task's `best_metric`, known here without importing torch; a test compares."""


def find_initial(job: Job, resolved: ResolvedStage, earlier: dict[str, StageResult]) -> Initial | None:
    """Where `model.init` points: a stage's weights in run storage, a registered version, a file or a timm tag.

    Raises:
        UserError: it points to nothing that can be read.
    """
    init = resolved.stage.model.init
    if init is None:
        return None
    if init.startswith("stage:"):
        parent = earlier[init.removeprefix("stage:")]
        version = f"{parent.registered_as}/{parent.version}" if parent.version else ""
        same = parent.classes == resolved.classes
        return Initial(f"{parent.folder}/{WEIGHTS}", parent.weights_sha256, keep_head=same, version=version)
    if init.startswith("models:/"):
        found = resolve_weights(init, job.tracking_uri(resolved.stage), job.root / "cache" / "models")
        same = tuple(found.config["classes"]) == resolved.classes
        sha256 = found.tags[tags.WEIGHTS_SHA256]
        return Initial(str(found.weights), sha256, keep_head=same, version=f"{found.name}/{found.version}")
    if init.startswith("timm:"):
        return Initial(init.removeprefix("timm:"), "", keep_head=True)
    path = job.root / Path(init).expanduser()
    with path.open("rb") as file:
        return Initial(str(path), hashlib.file_digest(file, "sha256").hexdigest(), keep_head=True)


def _initial_tags(initial: Initial | None) -> dict[str, str]:
    if initial is None:
        return {}
    found = {tags.INIT_SHA256: initial.sha256, tags.PARENT_VERSION: initial.version}
    return {name: value for name, value in found.items() if value}


def _begin(job: Job, resolved: ResolvedStage, initial: Initial | None, store: RunStore, spool: Spool, uid: str) -> None:
    """Record what is about to run, in the run's folder and for MLflow."""
    stage = without_secrets(resolved.stage)
    recipe = yaml.safe_dump(stage.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (store.local / "recipe.yaml").write_text(recipe, encoding="utf-8")
    environment = environment_info(PACKAGE)
    (store.local / "environment.json").write_text(json.dumps(environment, indent=1), encoding="utf-8")
    lineage = {tags.RECIPE_HASH: resolved.hash, tags.DATA_DIGEST: resolved.digest, **_initial_tags(initial)}
    spool.run(
        uid,
        resolved.run_name,
        experiment=stage.tracking.experiment,
        parent=job.uid,
        tags={
            **lineage,
            tags.CODE_DIGEST: environment["code"]["digest"],
            "stage": resolved.name,
            "run_folder": store.location,
            # not parameters: a restart may change them, and MLflow's parameters never change
            **flat(stage.cluster.model_dump(mode="json"), "cluster."),
        },
    )
    spool.params(uid, flat(hashed_part(stage)))
    spool.params(
        uid,
        {
            "steps": resolved.length.total,
            "train_samples": resolved.train_samples,
            "val_samples": resolved.val_samples,
            "classes": len(resolved.classes),
        },
    )
    for split in ("train", "val"):
        spool.dataset(
            uid,
            name=f"{resolved.name}-{split}",
            digest=resolved.digest,
            source=str(job.root / Path(stage.data.root).expanduser()),
            context=split,
        )
    spool.artifact(uid, store.local / "recipe.yaml")
    spool.artifact(uid, store.local / "environment.json")


def without_secrets(stage: Stage) -> Stage:
    """The stage without the tracking address, which may hold a password: what may be written down."""
    return stage.model_copy(update={"tracking": stage.tracking.model_copy(update={"uri": None})})


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def _export(
    job: Job,
    resolved: ResolvedStage,
    initial: Initial | None,
    store: RunStore,
    uid: str,
    result: dict[str, Any],
    minutes: float,
) -> StageResult:
    """Copy the best checkpoint's weights to `model/`, apart from the state that training resumes from."""
    stage = resolved.stage
    checkpoints = CheckpointStore(store.location)
    best = checkpoints.best()
    if best is None or best.value is None:
        raise UserError(
            "no checkpoint of this run carries an evaluation",
            where=checkpoints.folder,
            fix="set training.keep.best to at least 1 and submit again",
        )
    weights = checkpoints.verified_file(
        best.name, "model.safetensors" if stage.training.ema_decay is None else "ema.safetensors"
    )
    metrics = json.loads(checkpoints.verified_file(best.name, "state.json"))["last_metrics"]
    config = json.dumps(
        {
            "format": 1,
            "stage": without_secrets(stage).model_dump(mode="json"),
            "classes": resolved.classes,
            "metrics": metrics,
            "step": best.step,
        },
        indent=1,
    ).encode()
    for file, content in ((WEIGHTS, weights), (CONFIG, config)):
        store.write(file, content)
        if store.location != str(store.local):
            RunStore(store.name, str(store.local), store.local).write(file, content)
    return StageResult(
        name=resolved.name,
        run_name=resolved.run_name,
        uid=uid,
        folder=store.location,
        metric=BEST_METRIC[stage.task.kind],
        value=best.value,
        step=best.step,
        metrics=metrics,
        classes=resolved.classes,
        images_per_s=result["step"] * stage.training.global_batch / max(result["seconds"], 1e-9),
        minutes=minutes,
        reason=result["reason"] + (f": {result['detail']}" if result["detail"] else ""),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        registered_as=stage.tracking.register_as or f"{job.recipe}-{resolved.name}",
        init=_initial_tags(initial),
    )


def _registered(job: Job, resolved: ResolvedStage, finished: StageResult, shipper: Shipper) -> StageResult:
    """Wait for MLflow to take what the stage recorded, and look up the version it gave."""
    pending = shipper.drain(DRAIN_S)
    if pending.records:
        owed = f"{shipper.status()}; they are kept, and `python pipelines/sync.py --root {job.root}` sends them"
        return StageResult(**{**vars(finished), "tracking": owed})
    from scalablevit.tracking.registry import version_of_run

    version = version_of_run(job.tracking_uri(resolved.stage), finished.registered_as, finished.uid)
    return StageResult(**{**vars(finished), "version": version, "tracking": shipper.status()})
