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
from scalablevit.tasks.output import Answer, ScoredOutput, draw
from scalablevit.tasks.registry import task_kind
from scalablevit.training.environment import worker_variables

BATCH = 16
"""Images of one call on a cluster."""


@dataclass(frozen=True)
class PredictionJob:
    """What a process needs to answer images; plain values, so that it travels anywhere."""

    stage: str
    """The stage as JSON."""
    classes: tuple[str, ...]
    weights: str
    """File of the weights, already checked."""
    images: str
    """Folder that names are relative to."""
    out: str
    """Folder that pictures are written to."""
    shown_score: float | None = None
    """Score from which on detections are drawn; None: as the task has it."""


class Names(TypedDict):
    """A batch of images in Ray Data's terms."""

    name: Sequence[bytes]
    """The files' names, which need not be text."""
    picture: Sequence[bytes]
    """Names of what is drawn of them, without a suffix."""


class Answers(Names):
    """The same with what was answered."""

    answer: list[str]
    """JSON of each plain answer, or of `bad`, the reason why there is none."""


class Predictor:
    """Answers image files and draws the answers.

    Args:
        job: the `PredictionJob` as plain values.
    """

    def __init__(self, **job: Any) -> None:
        self.job = PredictionJob(**job)
        stage = stage_from_json(self.job.stage)
        self.trained = load_trained(stage, self.job.classes, self.job.weights)
        self.output = task_kind(stage.task.kind).build_output(self.job.classes, Path(self.job.out))
        if self.job.shown_score is not None and isinstance(self.output, ScoredOutput):
            self.output.shown_score = self.job.shown_score

    def __call__(self, batch: Names) -> Answers:
        """Answer some images.

        Args:
            batch: their files.
        """
        names = zip(map(os.fsdecode, batch["name"]), map(os.fsdecode, batch["picture"]), strict=True)
        answers = [json.dumps(self._predict(name, picture)) for name, picture in names]
        return {"name": batch["name"], "picture": batch["picture"], "answer": answers}

    def _predict(self, name: str, picture: str) -> Answer:
        trained = self.trained
        try:
            data = trained.stage.data
            image = read_image(Path(self.job.images) / name, data.max_pixels, mean_color(data.mean))
        except BadSample as bad:
            return {"bad": bad.reason}
        with torch.inference_mode():
            answer = trained.predict(image).answer()
        return draw(self.output, picture, image, answer)


def predict_here(job: PredictionJob, pictures: Mapping[str, str]) -> Iterator[tuple[str, Answer]]:
    """Name and answer of each image, in order, from this process; the model is loaded when this returns.

    Args:
        job: what to predict with.
        pictures: by the names of the images, the names of their pictures (`tasks.output.picture_names`).
    """
    predictor = Predictor(**asdict(job))
    batches = ({"name": [name], "picture": [picture]} for name, picture in _encoded(pictures))
    return chain.from_iterable(_rows(predictor(cast(Names, batch))) for batch in batches)


def predict_on_ray(job: PredictionJob, pictures: Mapping[str, str], processes: int) -> Iterator[tuple[str, Answer]]:
    """The same from the connected cluster, by 1 to `processes` processes with the stage's resources for a worker.

    Every node must see the job's three paths. The processes load the model while the first answers are waited for.
    """
    import ray.data

    cluster = Stage.model_validate_json(job.stage).cluster
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"name": name, "picture": picture} for name, picture in _encoded(pictures)]
    answered = ray.data.from_items(items).map_batches(
        Predictor,
        fn_constructor_kwargs=asdict(job),
        batch_size=BATCH,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes),
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        runtime_env={"env_vars": worker_variables(cluster.gpus_per_worker)},
    )
    for batch in answered.iter_batches(batch_size=BATCH, batch_format="numpy"):
        yield from _rows(cast(Answers, batch))


def _encoded(pictures: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Names as bytes, which is what they are on disk."""
    return [(os.fsencode(name), os.fsencode(picture)) for name, picture in pictures.items()]


def _rows(batch: Answers) -> Iterator[tuple[str, Answer]]:
    for name, answer in zip(batch["name"], batch["answer"], strict=True):
        yield os.fsdecode(name), json.loads(answer)
