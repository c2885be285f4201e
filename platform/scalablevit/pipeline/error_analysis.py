"""Error analysis on validation images: confusions between classes, some predictions, and the worst of them."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import Batch
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.names import printable
from scalablevit.data.sampler import Key
from scalablevit.data.sources.base import Sample, Source
from scalablevit.pipeline.sample_plots import save_pair
from scalablevit.report.findings import Case, Findings
from scalablevit.run_files import FINDINGS
from scalablevit.tasks.drawing import Drawing
from scalablevit.tasks.error_analysis import SampleScore
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.task import Task
from scalablevit.training.storage import put_text
from scalablevit.viz.palette import class_hex

IMAGES = 200
"""Most images of the random sample."""
SECONDS = 30.0
"""Seconds after which no further batch is started; the first batch always is."""
BATCH = 8
SHOWN, WORST = 6, 8
"""Predictions that are drawn: the first ones of the random sample, and the worst."""
SHOWN_PATH_PARTS = 2
"""Last parts of a file's path that are shown."""


@dataclass(frozen=True)
class _ScoredImage:
    """An image with its score, as it may be drawn."""

    score: SampleScore
    image: NDArray[np.uint8]
    """uint8 (H, W, 3), RGB."""
    ground_truth: Any
    prediction: Any
    """In the form in which the kind of task draws both (`tasks.drawing.Drawing`)."""


def analyse_errors(task: Task, stage: Stage, model: nn.Module, source: Source, folder: Path) -> Findings:
    """Analyse a random sample of validation images, as many as `IMAGES` and `SECONDS` allow, and write the findings.

    Args:
        task: of the stage.
        stage: the resolved stage.
        model: with the trained weights, on the CPU.
        source: the validation split.
        folder: replaced by one with `findings.json` and the drawn images.

    Returns:
        The findings.

    Raises:
        ValueError: none of the images could be read.
    """
    started = time.monotonic()
    kind = task_kind(stage.task.kind)
    analysis, drawing = kind.build_error_analysis(task.classes), kind.drawing()
    sampled: list[_ScoredImage] = []
    worst: list[_ScoredImage] = []
    images = bad = 0
    model.eval()
    for batch in _batches(task, stage, source):
        bad += len(batch.bad)
        if batch.samples:
            with torch.inference_mode():
                predictions = task.predict(model, task.prepare(batch, "val", ()))
            fresh = _score_images(drawing, batch, predictions, analysis.update(predictions, batch))
            images += len(fresh)
            sampled = (sampled + fresh)[:SHOWN]
            worst = sorted(worst + fresh, key=lambda scored: -scored.score.error)[:WORST]
        if time.monotonic() - started > SECONDS:
            break
    if not images:
        raise ValueError(f"none of {bad} validation images could be read")
    shutil.rmtree(folder, ignore_errors=True)
    cost = kind.build_costs(stage, task.classes).count()
    findings = Findings(
        images=images,
        split=len(source),
        bad=bad,
        seconds=time.monotonic() - started,
        parameters=cost.parameters,
        macs=cost.macs,
        measure=analysis.measure,
        details=analysis.details(),
        cases=tuple(_draw_case(scored, task, stage, source, folder) for scored in sampled),
        worst=tuple(_draw_case(scored, task, stage, source, folder) for scored in worst if scored.score.error > 0),
    )
    put_text(str(folder), FINDINGS, json.dumps(asdict(findings)))
    return findings


def _batches(task: Task, stage: Stage, source: Source) -> Iterator[Batch]:
    """Yield the random sample in batches; if the caller stops early, what was read is still random over the split."""
    dataset = SampleDataset(source, stage.data, stage.training.seed, train=False)
    order = np.random.default_rng(stage.training.seed).permutation(len(source))[:IMAGES].tolist()
    collate = task.collate("val")
    for start in range(0, len(order), BATCH):
        yield collate([dataset[Key(index, 0, 0)] for index in order[start : start + BATCH]])


def _score_images(drawing: Drawing, batch: Batch, predictions: Any, scores: list[SampleScore]) -> list[_ScoredImage]:
    scored = []
    for index, score in enumerate(scores):
        ground_truth = drawing.ground_truth_of(batch, index)
        image = batch.images[index].numpy().copy()  # a view would keep the whole batch in memory
        scored.append(_ScoredImage(score, image, ground_truth, drawing.prediction_of(predictions[index], ground_truth)))
    return scored


def _draw_case(scored: _ScoredImage, task: Task, stage: Stage, source: Source, folder: Path) -> Case:
    """Draw an image, unless it has been drawn, and return what it shows."""
    picture = f"{scored.score.index}.jpg"
    if not (folder / picture).exists():
        image = np.divide(scored.image, 255, dtype=np.float32)
        save_pair(stage.task.kind, image, scored.ground_truth, scored.prediction, folder / picture)
    classes_in = task_kind(stage.task.kind).drawing().classes_in
    indices = sorted({index for labels in (scored.ground_truth, scored.prediction) for index in classes_in(labels)})
    return Case(
        file=_name(source[scored.score.index]),
        picture=picture,
        words=scored.score.summary,
        error=scored.score.error,
        classes={task.classes[index]: class_hex(index) for index in indices},
        outcome=scored.score.outcome,
    )


def _name(sample: Sample) -> str:
    return printable("/".join(Path(str(sample.image)).parts[-SHOWN_PATH_PARTS:]))
