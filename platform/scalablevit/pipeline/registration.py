"""What a finished stage records for MLflow at its end: its plots, its best metric, and the model to register."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import task_info
from scalablevit.config.user_code import package_contents
from scalablevit.pipeline.cluster import PACKAGE
from scalablevit.pipeline.model_card import Registry, model_card
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import CHECKPOINTS, CURVES, MODEL, PLOTS, TRAINING_BATCH, VALIDATION
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.registry import task_kind
from scalablevit.tracking import tags
from scalablevit.tracking.connection import format_error
from scalablevit.tracking.environment import pin_requirements
from scalablevit.tracking.notifications import Notifier
from scalablevit.tracking.outbox import Outbox, now_ms
from scalablevit.tracking.tags import best_metric

SERVING = "serving/model.py"
"""The script of the registered model, below the package's folder."""
SERVING_PACKAGES = ["mlflow", "torch", "torchvision", "timm", "albumentations", "opencv-python-headless", "numpy",
                    "pillow", "simplejpeg", "hotcoco", "pydantic", "pyyaml", "safetensors"]  # fmt: skip
"""Distributions that serving needs for every kind of task."""
SAMPLE_SIDE = 64
"""Side of the sample input, pixels."""


def notifier_of(resolved: ResolvedStage, store: RunStore, root: Path) -> Notifier:
    """Return the notifier of a stage's run.

    Args:
        resolved: the stage.
        store: the run's folder.
        root: the platform's root.
    """
    return Notifier(root, resolved.stage.tracking.notify, store.name, resolved.name, store.location)


def record_model(
    recipe: str, resolved: ResolvedStage, finished: StageResult, store: RunStore, outbox: Outbox, registry: Registry
) -> None:
    """Record a finished stage's plots, best metric, model and end in the outbox; a second call registers nothing twice.

    Args:
        recipe: name of the recipe.
        resolved: the stage.
        finished: its result.
        store: the run's folder.
        outbox: of the run.
        registry: where the model is to be registered.
    """
    plots = plots_to_send(resolved.stage, store.local)
    for name in plots:
        outbox.artifact(finished.uid, store.local / name, PLOTS)
    best = {best_metric(finished.metric): finished.value}
    outbox.metrics(finished.uid, [{"step": finished.step, "time_ms": now_ms(), "metrics": best}])
    contents = package_contents(resolved.stage.imports)
    serving = [*SERVING_PACKAGES, *task_info(resolved.stage.task.kind).serving_packages]
    compiled = [requirement for content in contents.values() for requirement in content.requirements]
    chosen = f"{finished.metric}={finished.value:.6g} at step {finished.step}"
    outbox.tags(finished.uid, {"best": chosen, "checkpoint": f"{finished.folder}/{CHECKPOINTS}/{finished.checkpoint}"})
    outbox.model(
        finished.uid,
        name=finished.registered_as,
        folder=store.local / MODEL,
        package=PACKAGE,
        serving=SERVING,
        requirements=[*pin_requirements(serving), *compiled],
        user_code={name: content.digest for name, content in contents.items() if not content.requirements},
        tags={
            tags.RECIPE_HASH: resolved.hash,
            tags.DATA_DIGEST: resolved.digest,
            tags.METRIC: chosen,
            **tags.user_code({name: content.digest for name, content in contents.items()}),
            **finished.lineage,
        },
        description=_card(recipe, resolved, finished, store.local, plots, registry),
        outputs=_outputs(resolved.stage),
        sample=sample_image(),
        archive=True,
    )
    # before the end, after which nothing is recorded again; a run finishes once, so its uid names the notification
    notifier_of(resolved, store, registry.root).record(
        "finished", finished.metric, finished.value, model=finished.registered_as, uid=finished.uid
    )
    outbox.end(finished.uid, "FINISHED")


def plots_to_send(stage: Stage, local: Path) -> list[str]:
    """Return the names of a run's plots that are sent to MLflow; see `may_send_images`.

    Args:
        stage: of the run.
        local: the run's folder on this machine.
    """
    names = [CURVES, TRAINING_BATCH, VALIDATION] if may_send_images(stage) else [CURVES]
    return [name for name in names if (local / name).is_file()]


def may_send_images(stage: Stage) -> bool:
    """Return whether images of the data are sent to MLflow: if the recipe allows it, or for the built-in shapes."""
    return stage.tracking.log_images or stage.data.shapes is not None


def sample_image() -> str:
    """Return a grey PNG file in base64: a sample request for the model that shows nothing of the data."""
    import cv2
    import numpy as np

    from scalablevit.tasks.capabilities import GREY

    grey = np.full((SAMPLE_SIDE, SAMPLE_SIDE, 3), GREY, np.uint8)
    return base64.b64encode(cv2.imencode(".png", grey)[1].tobytes()).decode()


def _card(
    recipe: str, resolved: ResolvedStage, finished: StageResult, local: Path, plots: Sequence[str], registry: Registry
) -> str | None:
    try:
        return model_card(recipe, resolved, finished, local, plots, registry)
    except Exception as error:  # a model is registered without a card, too
        print(f"[{resolved.name}] the model card was not made: {format_error(error, registry.uri)}", flush=True)
        return None


def _outputs(stage: Stage) -> str | None:
    columns = task_kind(stage.task.kind).prediction_columns(stage)
    return json.dumps([{"name": name, **column} for name, column in columns.items()]) if columns else None
