"""A root with the built-in shapes, and untrained models as finished runs and registered versions."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch

from scalablevit.config.data import Shapes
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Stage
from scalablevit.config.root import tracking_uri
from scalablevit.config.stored import to_store
from scalablevit.config.task_info import task_info
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.pipeline.cluster import PACKAGE
from scalablevit.pipeline.registration import SERVING
from scalablevit.run_files import CONFIG, WEIGHTS
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Status, write_status
from scalablevit.tasks.registry import build_task
from scalablevit.tracking.environment import pin_requirements
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.sync import OutboxSync

RECIPE = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
STAGES = ("pretrain", "segment", "detect")
SIDE = 48
"""Pixels of the images."""


def make_root(root: Path) -> Path:
    """Write the data: 18 training and 12 validation images for each task."""
    write_shapes(Shapes(train_images=18, val_images=12, image_size=SIDE), root / "data")
    return root


def stage_of(name: str, *overrides: str) -> Stage:
    """A stage of the tiny recipe over that data, which its model has not seen."""
    given = ["data.shapes=null", "data.root=data", "cluster.workers=1", f"stages.{name}.model.init=null", *overrides]
    return load_recipe(RECIPE, given).stages[name]


def val_images(root: Path, name: str) -> Path:
    """Folder of the stage's validation images."""
    stage = stage_of(name)
    return root / stage.data.root / stage.data.val.images


def finished_run(root: Path, name: str, *overrides: str, seed: int = 0, run: str | None = None) -> str:
    """Leave what a finished stage leaves: weights (fresh ones), config and result. Gives the run's name."""
    stage = stage_of(name, *overrides)
    classes = open_source(stage.data, "val", root).classes
    torch.manual_seed(seed)
    weights = safetensors.torch.save(
        {key: tensor.contiguous() for key, tensor in build_task(stage, classes).build_model().state_dict().items()}
    )
    config = {"format": 1, "stage": to_store(stage), "classes": classes, "metrics": {}, "step": 1}
    store = RunStore.open(run or f"toy-{name}-{seed}", None, root)
    store.write(WEIGHTS, weights)
    store.write(CONFIG, json.dumps(config).encode())
    metric = task_info(stage.task.kind).best_metric
    StageResult(
        name=name, run_name=store.name, uid=f"{seed:032x}", folder=store.location, metric=metric, value=0.5, step=1,
        metrics={metric: 0.5}, classes=classes, images_per_s=1.0, minutes=1.0, reason="finished", checkpoint="",
        weights_sha256=hashlib.sha256(weights).hexdigest(), registered_as=f"toy-{name}", lineage={},
    ).save(store)  # fmt: skip
    return store.name


def register(root: Path, run: str, model: str) -> None:
    """Register a finished run's model as the stage's job does: a new version of `model`, with the alias candidate."""
    folder = root / "runs" / run
    outbox = Outbox(folder / "outbox")
    uid = hashlib.md5(f"{run}{model}".encode(), usedforsecurity=False).hexdigest()
    outbox.run(uid, run, experiment="toys")
    outbox.model(uid, name=model, folder=folder / "model", package=PACKAGE, serving=SERVING,
                requirements=pin_requirements(["mlflow", "torch"]), tags={}, archive=True)  # fmt: skip
    outbox.end(uid, "FINISHED")
    outbox.close()
    left = OutboxSync(folder / "outbox", tracking_uri(None, root)).send_left()
    assert (left.records, left.refused) == (0, 0), left


def leave_status(local: Path, **changes: object) -> None:
    """The status of a stage that has ended; by default finished, in the local folder."""
    status = Status(
        run=local.name, state="finished", why="", stage=local.name, step=9, total=12, unit="steps", best=None, host="h",
        process=1, job="", started=0.0, updated=0.0, ended=1.0, folder="", tracking="",
    )  # fmt: skip
    write_status(local, replace(status, **changes))
