"""COCO's metrics of made-up detections: the platform's metric beside pycocotools, on the same truth and detections."""

import argparse
import contextlib
import copy
import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from benchmarks.rows import Row
from benchmarks.timing import interleaved, speed_up, spread
from harness.batches import detection_batch
from harness.coco_scenes import Scene, coco_detections, coco_truth, made_scene
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scalablevit.tasks.detection.coco_matching import IOU_TYPES, Kind
from scalablevit.tasks.detection.coco_metric import CocoMetric

CLASSES = tuple(f"class {number}" for number in range(80))
OBJECTS, DETECTIONS = 7, 100
"""Of an image: about COCO's mean, and as many as its metrics count."""
BATCH = 2
"""Images of an update, a usual batch of one rank."""
BARS: dict[Kind, float] = {"box": 25.0, "mask": 25.0}
MANY = 5000
"""Images in COCO's validation split."""


def coco_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """From detections in memory to all metrics, and the memory that this takes of a whole validation split."""
    images, rounds = (60, 3) if options.quick else (300, 9)
    settings |= {"images": images, "objects": OBJECTS, "detections": DETECTIONS, "classes": len(CLASSES),
                 "batch": BATCH, "clock": "process_time", "times": {}}  # fmt: skip
    scenes = scenes_of(images)
    work = f"{MANY} images of {DETECTIONS} boxes and masks, exchanged as by ranks"
    rows = [Row("COCO evaluation, memory", 1.0, gibibytes(scenes, MANY), work, at_most=True, unit="GiB")]
    for kind, bar in BARS.items():
        seconds = coco_times(scenes, kind, rounds)
        settings["times"][kind] = spread(seconds)
        rows.append(Row(f"COCO evaluation, {kind}", bar, speed_up(seconds, "ours", "pycocotools"), "pycocotools"))
    return rows


def scenes_of(images: int) -> list[Scene]:
    """Truth and detections of so many images."""
    draws = np.random.default_rng(0)
    return [made_scene(draws, number, objects=OBJECTS, found=DETECTIONS, classes=len(CLASSES))
            for number in range(images)]  # fmt: skip


def coco_times(scenes: Sequence[Scene], kind: Kind, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of both; only the platform's hold what brings detections into the library's form.

    Raises:
        RuntimeError: they come to different metrics.
    """
    batches = [scenes[start : start + BATCH] for start in range(0, len(scenes), BATCH)]
    # pycocotools writes into the lists that it is given; both are ready in its format before the clock starts
    truth, detections = coco_truth(scenes, CLASSES), coco_detections(scenes, IOU_TYPES[kind])
    given = [(copy.deepcopy(truth), copy.deepcopy(detections)) for _ in range(rounds + 1)]
    ours, theirs = list[float](), list[float]()

    def platform() -> None:
        metric = CocoMetric(CLASSES, masks=kind == "mask")
        metric.kinds, metric._streams = (kind,), {kind: metric._streams[kind]}
        for batch in batches:
            update(metric, batch)
        metric.synchronize()
        ours.append(metric.metrics[f"val/{kind}_ap"])

    def reference() -> None:
        theirs.append(pycocotools_ap(*given.pop(), IOU_TYPES[kind]))

    seconds = interleaved({"ours": platform, "pycocotools": reference}, rounds, warm_up=1)
    if any(abs(each - ours[0]) > 1e-9 for each in (*ours, *theirs)):
        raise RuntimeError(f"{kind}: the average precision is {ours}, pycocotools says {theirs}")
    return seconds


def update(metric: CocoMetric, scenes: Sequence[Scene]) -> None:
    batch = detection_batch(
        indices=torch.tensor([number for number, _, _ in scenes]), instances=[truth for _, truth, _ in scenes]
    )
    metric.update([found for _, _, found in scenes], batch)


def gibibytes(scenes: Sequence[Scene], images: int) -> float:
    """What the metric of so many images adds to this process at most, with the copies that rank 0 makes."""
    metric = CocoMetric(CLASSES, masks=True)
    Path("/proc/self/clear_refs").write_text("5")  # begins the peak anew
    before = psutil.Process().memory_info().rss
    for number in range(images):
        update(metric, [(number, *scenes[number % len(scenes)][1:])])
    metric._evaluate([pickle.loads(pickle.dumps((metric._images, metric._streams)))])  # noqa: S301  # our own bytes
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return (peak * 2**10 - before) / 2**30


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
