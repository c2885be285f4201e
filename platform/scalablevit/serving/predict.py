"""Batch prediction: the same function in this process and, through Ray Data's `map_batches`, on a cluster."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict, cast

import torch

from scalablevit.config.recipe import Stage
from scalablevit.config.user_code import stage_from_json
from scalablevit.data.decoding import BadSample, mean_color, read_image
from scalablevit.serving.network import load_trained
from scalablevit.tasks.output import PredictionDict, ScoredOutput, draw
from scalablevit.tasks.registry import task_kind
from scalablevit.training.environment import worker_variables

BATCH = 16
"""Images of one call on a cluster."""


@dataclass(frozen=True)
class PredictionJob:
    """What a process needs to predict images; plain values, so that it can be sent to any process."""

    stage: str
    """The stage as JSON."""
    classes: tuple[str, ...]
    weights: str
    """File of the weights, whose SHA-256 is already checked."""
    images: str
    """Folder that the images' names are relative to."""
    out: str
    """Folder that pictures are written to."""
    shown_score: float | None = None
    """Lowest score of the detections that are drawn; None: the task's default."""


class Names(TypedDict):
    """A batch of images in Ray Data's terms."""

    name: Sequence[bytes]
    """The files' names, which need not be text."""
    picture: Sequence[bytes]
    """Names of the drawings, without a suffix."""


class Predictions(Names):
    """A batch of images with their predictions."""

    prediction: list[str]
    """JSON of each prediction as plain values, or of `bad`: the reason why there is none."""


class Predictor:
    """Predicts image files and draws the predictions.

    Args:
        job: the fields of a `PredictionJob`.
    """

    def __init__(self, **job: Any) -> None:
        self.job = PredictionJob(**job)
        stage = stage_from_json(self.job.stage)
        self.trained = load_trained(stage, self.job.classes, self.job.weights)
        self.output = task_kind(stage.task.kind).build_output(self.job.classes, Path(self.job.out))
        if self.job.shown_score is not None and isinstance(self.output, ScoredOutput):
            self.output.shown_score = self.job.shown_score

    def __call__(self, batch: Names) -> Predictions:
        """Return the predictions for a batch of image files."""
        names = zip(map(os.fsdecode, batch["name"]), map(os.fsdecode, batch["picture"]), strict=True)
        predictions = [json.dumps(self._predict(name, picture)) for name, picture in names]
        return {"name": batch["name"], "picture": batch["picture"], "prediction": predictions}

    def _predict(self, name: str, picture: str) -> PredictionDict:
        trained = self.trained
        try:
            data = trained.stage.data
            image = read_image(Path(self.job.images) / name, data.max_pixels, mean_color(data.mean))
        except BadSample as bad:
            return {"bad": bad.reason}
        with torch.inference_mode():
            prediction = trained.predict(image).to_dict()
        return draw(self.output, picture, image, prediction)


def predict_here(job: PredictionJob, pictures: Mapping[str, str]) -> Iterator[tuple[str, PredictionDict]]:
    """Return name and prediction of each image, in order, predicted in this process; the model is loaded before.

    Args:
        job: what to predict with.
        pictures: names of the drawings by the names of the images (`tasks.output.picture_names`).
    """
    predictor = Predictor(**asdict(job))
    batches = ({"name": [name], "picture": [picture]} for name, picture in _encode_names(pictures))
    return chain.from_iterable(_rows(predictor(cast(Names, batch))) for batch in batches)


def predict_on_ray(
    job: PredictionJob, pictures: Mapping[str, str], processes: int
) -> Iterator[tuple[str, PredictionDict]]:
    """Yield what `predict_here` returns, predicted on the connected cluster.

    Every node must see the job's three paths. The processes load the model while the caller waits for the first
    predictions.

    Args:
        job: what to predict with.
        pictures: names of the drawings by the names of the images (`tasks.output.picture_names`).
        processes: most processes; each has the resources of one of the stage's workers.
    """
    import ray.data

    cluster = Stage.model_validate_json(job.stage).cluster
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"name": name, "picture": picture} for name, picture in _encode_names(pictures)]
    predicted = ray.data.from_items(items).map_batches(
        Predictor,
        fn_constructor_kwargs=asdict(job),
        batch_size=BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes),
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        runtime_env={"env_vars": worker_variables(cluster.gpus_per_worker)},
    )
    for batch in predicted.iter_batches(batch_size=BATCH, batch_format="numpy"):
        yield from _rows(cast(Predictions, batch))


def _encode_names(pictures: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return image and drawing names as bytes, as the disk has them: they need not be text."""
    return [(os.fsencode(name), os.fsencode(picture)) for name, picture in pictures.items()]


def _rows(batch: Predictions) -> Iterator[tuple[str, PredictionDict]]:
    for name, prediction in zip(batch["name"], batch["prediction"], strict=True):
        yield os.fsdecode(name), json.loads(prediction)
