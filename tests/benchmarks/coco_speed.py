"""COCO's metrics of made-up detections: the platform's metric beside pycocotools, on the same truth and detections."""

import argparse
import contextlib
import copy
import io
from typing import Any

import numpy as np
import torch
from benchmarks.rows import Row
from benchmarks.timing import interleaved, speed_up, spread
from harness.batches import detection_batch
from harness.coco_scenes import made_scene
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scalablevit.tasks.detection.coco_metric import IOU_TYPES, CocoMetric

CLASSES = tuple(f"class {number}" for number in range(80))
OBJECTS, DETECTIONS = 7, 100
"""Of an image: about COCO's mean, and as many as its metrics count."""
BARS = {"box": 5.0, "mask": 2.5}


def coco_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """From detections in memory to all metrics."""
    images, rounds = (60, 3) if options.quick else (300, 9)
    settings |= {"images": images, "objects": OBJECTS, "detections": DETECTIONS, "classes": len(CLASSES),
                 "clock": "process_time", "times": {}}  # fmt: skip
    metric = made_metric(images)
    rows = []
    for kind, bar in BARS.items():
        seconds = coco_times(metric, kind, rounds)
        settings["times"][kind] = spread(seconds)
        rows.append(Row(f"COCO evaluation, {kind}", bar, speed_up(seconds, "ours", "pycocotools"), "pycocotools"))
    return rows


def made_metric(images: int) -> CocoMetric:
    """With truth and detections of so many images."""
    draws = np.random.default_rng(0)
    metric = CocoMetric(CLASSES, masks=True)
    for number in range(images):
        _, truth, found = made_scene(draws, number, objects=OBJECTS, found=DETECTIONS, classes=len(CLASSES))
        metric.update([found], detection_batch(indices=torch.tensor([number]), instances=[truth]))
    return metric


def coco_times(metric: CocoMetric, kind: str, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of both.

    Raises:
        RuntimeError: they come to different metrics.
    """
    metric.kinds = (kind,)
    detections = metric._detections(kind)
    # pycocotools writes into the lists that it is given; both are ready in its format before the clock starts
    given = [(copy.deepcopy(metric._ground_truth()), copy.deepcopy(detections)) for _ in range(rounds + 1)]
    theirs: list[float] = []

    def reference() -> None:
        theirs.append(pycocotools_ap(*given.pop(), IOU_TYPES[kind]))

    seconds = interleaved({"ours": metric.synchronize, "pycocotools": reference}, rounds, warm_up=1)
    ours = metric.metrics[f"val/{kind}_ap"]
    if any(abs(each - ours) > 1e-9 for each in theirs):
        raise RuntimeError(f"{kind}: the average precision is {ours}, pycocotools says {theirs}")
    return seconds


def pycocotools_ap(truth: dict[str, Any], detections: list[dict[str, Any]], kind: str) -> float:
    """Average precision, by way of the whole summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = truth
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(detections), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
