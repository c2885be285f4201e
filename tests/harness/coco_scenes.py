"""Made-up objects and detections for the tests of COCO's metrics."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from hotcoco import mask as run_lengths

from harness.batches import detection_batch
from scalablevit.data.instances import Instances
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.coco_metric import CocoMetric

CLASSES = ("sky, clear", "road", "car", "tree", "boat")
Scene = tuple[int, Instances, dict[str, Any]]
"""Number, truth, detections."""


def _box(draws: np.random.Generator, height: int, width: int) -> list[float]:
    """Of any size from a few pixels to most of the image."""
    wide, high = (4 + (side - 5) * draws.random() ** 2 for side in (width, height))
    left, top = draws.random() * (width - wide), draws.random() * (height - high)
    return [left, top, left + wide, top + high]


def _ellipse(box: Any, height: int, width: int) -> np.ndarray:
    left, top, right, bottom = box
    rows, columns = np.mgrid[:height, :width] + 0.5
    across = (columns - (left + right) / 2) / max((right - left) / 2, 0.5)
    down = (rows - (top + bottom) / 2) / max((bottom - top) / 2, 0.5)
    return (across**2 + down**2 <= 1).astype(np.uint8)


def _encoded(boxes: np.ndarray, height: int, width: int) -> list[dict[str, Any]]:
    if not len(boxes):
        return []
    masks = np.stack([_ellipse(box, height, width) for box in boxes], axis=2)
    return list(run_lengths.encode(np.asfortranarray(masks)))


def made_scene(draws: np.random.Generator, number: int, *, objects: int, found: int, classes: int = 4) -> Scene:
    """Objects, some of them crowds, and detections: objects moved by a little or a lot, and boxes from nowhere."""
    height, width = (int(side) for side in draws.integers(40, 300, 2))
    boxes = np.array([_box(draws, height, width) for _ in range(objects)], np.float32).reshape(-1, 4)
    labels = draws.integers(0, classes, objects)
    masks = _encoded(boxes, height, width)
    areas = np.array([run_lengths.area(mask) for mask in masks], np.float32)
    truth = Instances((height, width), boxes, labels, draws.random(objects) < 0.15, areas, masks)
    guesses, names = [], []
    for _ in range(found):
        if objects and draws.random() < 0.7:
            chosen = int(draws.integers(objects))
            sides = np.tile(boxes[chosen][2:] - boxes[chosen][:2], 2)
            box = boxes[chosen] + draws.normal(0, 1, 4) * draws.choice([0.02, 0.1, 0.5]) * sides
            right = draws.random() < 0.9
            names.append(int(labels[chosen]) if right else int(draws.integers(classes)))
            box = [min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]) + 1, max(box[1], box[3]) + 1]
        else:
            box = _box(draws, height, width)
            names.append(int(draws.integers(classes)))
        guesses.append(box)
    shown = np.array(guesses, np.float32).reshape(-1, 4).clip(0, [width, height] * 2)
    order = np.argsort(-(scores := draws.random(found).astype(np.float32)), kind="stable")
    detections = Detections(
        boxes=torch.from_numpy(shown[order]),
        scores=torch.from_numpy(scores[order]),
        labels=torch.tensor(names, dtype=torch.int64)[order.tolist()],
        masks=_encoded(shown[order], height, width),
    )
    return number, truth, detections


def made_scenes(seed: int) -> list[Scene]:
    """Usual ones, images without objects, without detections, with neither, and one with over 100 detections."""
    draws = np.random.default_rng(seed)
    counts = [(5, 9), (0, 4), (3, 0), (0, 0), (12, 130), (1, 1), (8, 20)]
    return [made_scene(draws, 3 * n, objects=objects, found=found) for n, (objects, found) in enumerate(counts)]


def tied_scenes(seed: int) -> list[Scene]:
    """The scenes of `made_scenes` with boxes on a coarse grid, few different scores, more crowds, and areas that lie on
    the borders of COCO's sizes or are not the masks'."""
    draws = np.random.default_rng(seed)
    scenes = []
    for number, truth, found in made_scenes(seed):
        count = len(truth.labels)
        areas = np.where(draws.random(count) < 0.5, truth.areas, draws.choice([0, 1024, 1024.5, 9216, 10**6], count))
        tied = replace(truth, boxes=np.round(truth.boxes / 8) * 8, areas=areas, crowd=draws.random(count) < 0.3)
        scores = torch.round(found.scores * 4) / 4
        scenes.append((number, tied, replace(found, boxes=torch.round(found.boxes / 8) * 8, scores=scores)))
    return scenes


def scenes_without_objects() -> list[Scene]:
    return [made_scene(np.random.default_rng(0), number, objects=0, found=2) for number in range(2)]


def metric_of(scenes: list[Scene], *, masks: bool = True, batch: int = 2) -> CocoMetric:
    metric = CocoMetric(CLASSES, masks=masks)
    for start in range(0, len(scenes), batch):
        part = scenes[start : start + batch]
        metric.update(
            [found for _, _, found in part],
            detection_batch(
                indices=torch.tensor([number for number, _, _ in part]), instances=[truth for _, truth, _ in part]
            ),
        )
    return metric


def coco_truth(scenes: Sequence[Scene], classes: Sequence[str]) -> dict[str, Any]:
    """The objects in COCO's format. Numbers of categories and images have gaps, which the platform's do not have."""
    images, annotations = [], []
    for number, truth, _ in scenes:
        images.append({"id": number + 5, "height": truth.size[0], "width": truth.size[1]})
        for box, label, crowd, area, mask in zip(
            truth.boxes.tolist(), truth.labels.tolist(), truth.crowd, truth.areas, truth.masks, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number + 5, "category_id": 7 * label + 3,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(area), "iscrowd": int(crowd), "segmentation": _as_text(mask),
                }
            )  # fmt: skip
    categories = [{"id": 7 * label + 3, "name": name} for label, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_detections(scenes: Sequence[Scene], iou_type: str) -> list[dict[str, Any]]:
    """The detections in COCO's format, boxes or masks."""
    results = []
    for number, _, found in scenes:
        for box, score, label, mask in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), found.masks, strict=True
        ):
            what = (
                {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]}
                if iou_type == "bbox"
                else {"segmentation": _as_text(mask)}
            )
            results.append({"image_id": number + 5, "category_id": 7 * label + 3, "score": score, **what})
    return results


def _as_text(mask: dict[str, Any]) -> dict[str, Any]:
    return {**mask, "counts": mask["counts"].decode() if isinstance(mask["counts"], bytes) else mask["counts"]}


def metrics_of_parts(scenes: Callable[[], list[Scene]], parts: list[slice]) -> list[dict[str, float]]:
    """Of each part; what the process of a rank can be given."""
    return [metrics_of(scenes()[part]) for part in parts]


def metrics_of(scenes: list[Scene], *, masks: bool = True) -> dict[str, float]:
    metric = metric_of(scenes, masks=masks)
    metric.synchronize()
    return metric.compute()
