"""Plots of samples: training images as the model gets them, and validation images with their predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.recipe import Length, Stage
from scalablevit.config.task_info import task_info
from scalablevit.data.batch import Batch
from scalablevit.data.dataset import Bad, ImageSizes, SampleDataset
from scalablevit.data.sampler import Key, TrainBatches
from scalablevit.data.sources.base import Source
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.task import Task
from scalablevit.training.callbacks import train_order
from scalablevit.viz.samples import CELL, Image
from scalablevit.viz.style import plain, save

TRAINING_IMAGES = 12
COLUMNS = 4
VALIDATION_IMAGES = 6
PAIRS = 2
"""Images in a row, each drawn twice: with ground truth and with prediction."""
EDGES = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.02}
"""Matplotlib's margins: none but a small one between the images."""


def save_training_batch(task: Task, stage: Stage, source: Source, file: Path) -> None:
    """Draw the first images that rank 0 trains on in step 1: augmented, erased, mixed, and with normalization undone.

    Args:
        task: of the stage.
        stage: the resolved stage.
        source: the training split.
        file: a PNG file.

    Raises:
        ValueError: none of the images could be read.
    """
    workers, training, length = stage.cluster.workers, stage.training, Length.of(stage, len(source))
    keys = next(iter(TrainBatches(
        train_order(stage, source), global_batch_size=training.global_batch_size,
        accumulation_steps=training.accumulation_steps, rank=0,
        world=workers, first_step=0, end_step=length.total,
    )))  # fmt: skip
    sizes = ImageSizes(length.image_sizes, training.global_batch_size)
    dataset = SampleDataset(source, stage.data, training.seed, train=True, sizes=sizes)
    batch = _batch(task, dataset, keys, "train")
    prepared = task.prepare(batch, "train", (training.seed, 0, 0, 0))
    count = min(TRAINING_IMAGES, batch.samples)
    figure, axes = _grid(-(-count // COLUMNS), COLUMNS)
    drawing = task_kind(stage.task.kind).drawing()
    for index, cell in zip(range(count), axes.flat, strict=False):
        image = _colours(prepared.images[index], stage)
        drawing.draw_training_image(cell, image, prepared, index, task.classes)
    save(figure, file)


def save_predictions(task: Task, stage: Stage, model: nn.Module, source: Source, file: Path) -> None:
    """Draw validation images, evenly spread over the split, with ground truth (left) and prediction (right).

    Args:
        task: of the stage.
        stage: the resolved stage.
        model: with the trained weights, on the CPU.
        source: the validation split.
        file: a PNG file.

    Raises:
        ValueError: none of the images could be read.
    """
    count = min(VALIDATION_IMAGES, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    dataset = SampleDataset(source, stage.data, stage.training.seed, train=False)
    batch = _batch(task, dataset, [Key(index, 0, 0) for index in indices], "val")
    model.eval()
    with torch.inference_mode():
        predictions = task.predict(model, task.prepare(batch, "val", ()))
    figure, axes = _grid(-(-batch.samples // PAIRS), 2 * PAIRS)
    cells = axes.reshape(-1, 2)
    drawing = task_kind(stage.task.kind).drawing()
    for index in range(batch.samples):
        image = batch.images[index].numpy().astype(np.float32) / 255
        ground_truth = drawing.ground_truth_of(batch, index)
        prediction = drawing.prediction_of(predictions[index], ground_truth)
        for cell, labels, what in zip(cells[index], (ground_truth, prediction), ("truth", "prediction"), strict=True):
            cell.set_title(plain(what + drawing.caption(labels, task.classes)), fontsize="small")
            drawing.draw(cell, image, labels, task.classes)
    save(figure, file)


def save_pair(kind: str, image: Image, ground_truth: Any, prediction: Any, file: Path) -> None:
    """Draw one validation image without text: with ground truth (left) and prediction (right).

    For kinds of task that are not drawn in pairs the image is drawn once.

    Args:
        kind: of the task.
        image: (H, W, 3) RGB from 0 to 1, as the network gets it.
        ground_truth: of `ground_truth_of` of the kind's drawing.
        prediction: of `prediction_of` of the kind's drawing.
        file: an image file, in the format that its suffix names.
    """
    drawing = task_kind(kind).drawing()
    drawn = [ground_truth, prediction] if task_info(kind).drawn_in_pairs else [ground_truth]
    height, width = drawing.size(image, ground_truth)
    figure = Figure(figsize=(CELL * len(drawn), CELL * height / width))
    cells = figure.subplots(1, len(drawn), squeeze=False, gridspec_kw=EDGES)[0]
    for cell, labels in zip(cells, drawn, strict=True):
        cell.set_axis_off()
        drawing.draw(cell, image, labels)
        cell.set_aspect("auto")  # else rounding of the sides leaves margins
    save(figure, file)


def _batch(task: Task, dataset: SampleDataset, keys: Sequence[Key], split: Any) -> Batch:
    items: list[Any] = [dataset[key] for key in keys]
    if all(isinstance(item, Bad) for item in items):
        raise ValueError(f"none of {len(items)} images could be read; the first: {items[0].path}: {items[0].reason}")
    return task.collate(split)(items)


def _colours(image: Tensor, stage: Stage) -> Image:
    """Return a normalised image (3, H, W) as RGB (H, W, 3) from 0 to 1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (stage.data.mean, stage.data.std))
    colours: Image = (image.float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return colours


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(CELL * columns, CELL * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    return figure, axes
