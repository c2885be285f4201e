"""Pictures of samples: training images as the model sees them, and validation images with truth and prediction."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from scalablevit.config.recipe import Length, Stage
from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.dataset import Bad, SampleDataset
from scalablevit.data.instances import decoded
from scalablevit.data.labels import IGNORE
from scalablevit.data.loader import Batch
from scalablevit.data.sampler import Key, TrainBatches
from scalablevit.data.sources.base import Source
from scalablevit.report.charts import plain
from scalablevit.report.curves import DPI, save
from scalablevit.tasks.task import Task
from scalablevit.training.effects import train_order

TRAINING_IMAGES = 12
COLUMNS = 4
VALIDATION_IMAGES = 6
PAIRS = 2
"""Of truth and prediction, beside each other."""
CELL = 2.6
"""Inches of a picture's side."""
ACROSS = round(CELL * DPI)
"""Pixels of a picture's width: what is wider is shrunk before it is drawn."""
LABELS, OBJECTS = 0.55, 0.45
"""Opacity of a label map and of an object's mask."""
NAMED_CLASSES = 6
"""Of a label map, the largest."""
EDGES = {"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.02}
SHOWN_SHARE = 0.1
"""Of a mixed image's classes, those with less are not named."""

Image = NDArray[np.float32]
"""(height, width, 3), RGB, 0 to 1."""


def save_training_batch(task: Task, stage: Stage, source: Source, file: Path) -> None:
    """Draw the first images of what rank 0 trains on in step 1: augmented, erased, mixed, and put back into colours.

    Args:
        source: the training split.
        file: a PNG.
    """
    workers, training = stage.cluster.workers, stage.training
    keys = next(iter(TrainBatches(
        train_order(stage, source), global_batch_size=training.global_batch_size,
        accumulation_steps=training.accumulation_steps, rank=0,
        world=workers, first_step=0, end_step=Length.of(stage, len(source)).total,
    )))  # fmt: skip
    dataset = SampleDataset(source, stage.data, training.seed, train=True)
    batch = _batch(task, dataset, keys, "train")
    prepared = task.prepare(batch, "train", (training.seed, 0, 0, 0))
    count = min(TRAINING_IMAGES, batch["samples"])
    figure, axes = _grid(-(-count // COLUMNS), COLUMNS)
    for number, place in zip(range(count), axes.flat, strict=False):
        _draw_training_image(place, task, _colours(prepared["image"][number], stage), prepared, number)
    save(figure, file)


def save_predictions(task: Task, stage: Stage, model: nn.Module, source: Source, file: Path) -> None:
    """Draw validation images, evenly spread over the split, with truth on the left and prediction on the right.

    Args:
        model: with the weights to show, on the CPU.
        source: the validation split.
        file: a PNG.
    """
    count = min(VALIDATION_IMAGES, len(source))
    numbers = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    dataset = SampleDataset(source, stage.data, stage.training.seed, train=False)
    batch = _batch(task, dataset, [Key(number, 0, 0) for number in numbers], "val")
    model.eval()
    with torch.inference_mode():
        predictions = task.predict(model, task.prepare(batch, "val", ()))
    figure, axes = _grid(-(-batch["samples"] // PAIRS), 2 * PAIRS)
    places = axes.reshape(-1, 2)
    for number in range(batch["samples"]):
        image = batch["image"][number].numpy().astype(np.float32) / 255
        truth = truth_of(batch, number)
        answer = answer_of(predictions[number], truth)
        for place, shown, what in zip(places[number], (truth, answer), ("truth", "prediction"), strict=True):
            _draw(place, image, shown, task.classes, what)
    save(figure, file)


def save_pair(image: Image, truth: dict[str, Any], answer: dict[str, Any], file: Path) -> None:
    """Draw one validation image without any writing: with truth on the left and answer on the right.

    An image of one class, which nothing can be drawn on, is there once.

    Args:
        image: as the network sees it.
        truth, answer: of `truth_of` and `answer_of`.
        file: a picture in the format that its suffix names.
    """
    shown = [truth] if "class" in truth else [truth, answer]
    height, width = image.shape[:2] if "class" in truth else _size(truth)
    figure = Figure(figsize=(CELL * len(shown), CELL * height / width))
    places = figure.subplots(1, len(shown), squeeze=False, gridspec_kw=EDGES)[0]
    for place, each in zip(places, shown, strict=True):
        place.set_axis_off()
        _draw(place, image, each)
        place.set_aspect("auto")  # no margins from rounded sides
    save(figure, file)


def _size(shown: dict[str, Any]) -> tuple[int, int]:
    height, width = shown["mask"].shape if "mask" in shown else shown["size"]
    return height, width


def _batch(task: Task, dataset: SampleDataset, keys: Sequence[Key], split: Any) -> Batch:
    items: list[Any] = [dataset[key] for key in keys]
    if all(isinstance(item, Bad) for item in items):
        raise ValueError(f"none of {len(items)} images could be read; the first: {items[0].path}: {items[0].reason}")
    return task.collate(split)(items)


def _colours(image: Tensor, stage: Stage) -> Image:
    """A normalised image (3, h, w) as it looks."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (stage.data.mean, stage.data.std))
    colours: Image = (image.float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    return colours


def _draw_training_image(axes: Axes, task: Task, image: Image, batch: Batch, number: int) -> None:
    size = image.shape[:2]
    if "target" in batch:
        values, classes = batch["target"][number].topk(min(2, len(task.classes)))
        named = [f"{task.classes[c]} {v:.2f}" for v, c in zip(values.tolist(), classes.tolist(), strict=True)
                 if v >= SHOWN_SHARE]  # fmt: skip
        axes.set_title(plain(" + ".join(named)), fontsize="x-small")
        _show(axes, _fitted(image, size), size)
    elif "mask" in batch:
        _label_map(axes, image, batch["mask"][number].numpy(), task.classes)
    else:
        labels = batch["labels"][number].tolist()
        masks = batch["masks"][number].numpy() if "masks" in batch else ()
        _objects(axes, image, size, masks, labels)
        _boxes(axes, batch["boxes"][number].numpy(), labels, task.classes)


def truth_of(batch: Batch, number: int) -> dict[str, Any]:
    """What a validation sample shows: `class`, or `mask`, or `boxes`, `labels` and `masks` in an image of `size`.

    Masks of objects are run lengths, and none where there are boxes only.
    """
    if "label" in batch:
        return {"class": int(batch["label"][number])}
    if "mask" in batch:
        return {"mask": batch["mask"][number].numpy()}
    found = batch["instances"][number]
    return {"size": found.size, "boxes": found.boxes, "labels": found.labels.tolist(), "masks": found.masks or []}


def answer_of(prediction: Any, truth: dict[str, Any]) -> dict[str, Any]:
    """What a task predicts of one image (logits, a label map, or detections), in the form of the truth."""
    if "class" in truth:
        probabilities = prediction.softmax(dim=0)
        return {"class": int(probabilities.argmax()), "probability": float(probabilities.max())}
    if "mask" in truth:
        return {"mask": prediction.numpy()}
    kept = [number for number, score in enumerate(prediction["scores"].tolist()) if score >= SHOWN_SCORE]
    return {
        "size": truth["size"],
        "boxes": prediction["boxes"].numpy()[kept],
        "labels": [int(prediction["labels"][number]) for number in kept],
        "scores": [float(prediction["scores"][number]) for number in kept],
        "masks": [prediction["masks"][number] for number in kept if "masks" in prediction],
    }


def _draw(
    axes: Axes, image: Image, shown: dict[str, Any], classes: Sequence[str] = (), what: str | None = None
) -> None:
    """An image with its class, label map or boxes, in the size that these are given in; without `what` no writing."""
    if what is not None:
        probability = f" {shown['probability']:.2f}" if "probability" in shown else ""
        named = f": {classes[shown['class']]}{probability}" if "class" in shown else ""
        axes.set_title(plain(f"{what}{named}"), fontsize="small")
    if "class" in shown:
        _show(axes, _fitted(image, image.shape[:2]), image.shape[:2])
    elif "mask" in shown:
        _label_map(axes, image, shown["mask"], classes)
    else:
        masks = (decoded([each], shown["size"])[0] for each in shown["masks"])
        _objects(axes, image, shown["size"], masks, shown["labels"])
        _boxes(axes, shown["boxes"], shown["labels"], classes, shown.get("scores"))


def _grid(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(CELL * columns, CELL * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def _show(axes: Axes, image: Image, size: Sequence[int]) -> None:
    """An image, at the places of an image of `size` (height, width)."""
    edges = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axes.imshow((image * 255).round().astype(np.uint8), interpolation="nearest", extent=edges)


def _fitted(image: NDArray[Any], size: Sequence[int], interpolation: int = cv2.INTER_AREA) -> NDArray[Any]:
    """An image in a size (height, width), or as much smaller as it is drawn."""
    factor = min(1.0, ACROSS / size[1])
    height, width = (max(1, round(side * factor)) for side in size)
    return cv2.resize(image, (width, height), interpolation=interpolation)


def colour(number: int) -> tuple[float, float, float]:
    """Of a class; neighbouring numbers differ."""
    red, green, blue, _ = colormaps["tab20"](number * 2 % 20 + number // 10 % 2)
    return red, green, blue


def _label_map(axes: Axes, image: Image, mask: NDArray[np.uint8], classes: Sequence[str]) -> None:
    """A label map over its image, with the names of its largest classes if any; ignored pixels stay clear."""
    numbers, counts = np.unique(mask[mask != IGNORE], return_counts=True)
    seen = _fitted(mask, mask.shape, cv2.INTER_NEAREST_EXACT)
    tinted = _tinted(_fitted(image, mask.shape), (seen == number for number in numbers), numbers.tolist(), LABELS)
    _show(axes, tinted, mask.shape)
    largest = numbers[np.argsort(-counts, kind="stable")][:NAMED_CLASSES].tolist()
    if largest and classes:
        patches = [Patch(color=colour(number), label=plain(classes[number])) for number in largest]
        axes.legend(handles=patches, fontsize="xx-small", loc="lower left", framealpha=0.6)


def _objects(
    axes: Axes, image: Image, size: Sequence[int], masks: Iterable[NDArray[np.uint8]], labels: Sequence[int]
) -> None:
    """Objects' masks of `size` (height, width), if there are any, over their image."""
    seen = (_fitted(mask, size, cv2.INTER_NEAREST_EXACT) > 0 for mask in masks)
    _show(axes, _tinted(_fitted(image, size), seen, labels, OBJECTS), size)


def _tinted(image: Image, places: Iterable[NDArray[np.bool_]], labels: Sequence[int], opacity: float) -> Image:
    """An image with its classes' colours at their places, one over the other."""
    tinted = image.copy()
    for here, label in zip(places, labels, strict=False):  # without masks there are only labels
        tinted[here] = (1 - opacity) * tinted[here] + opacity * np.array(colour(label), np.float32)
    return tinted


def _boxes(
    axes: Axes, boxes: NDArray[np.float32], labels: Sequence[int], classes: Sequence[str], scores: Any = None
) -> None:
    """Boxes, with the names of their classes and scores if there are any names."""
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        edge = colour(labels[number])
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=1.2))
        if classes:
            score = "" if scores is None else f" {scores[number]:.2f}"
            axes.text(left, top, plain(f"{classes[labels[number]]}{score}"), fontsize="xx-small", color="white",
                      va="bottom", bbox={"facecolor": edge, "edgecolor": "none", "pad": 0.5})  # fmt: skip
