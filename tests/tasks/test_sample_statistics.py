"""Metrics of any choice of images are those of the metric that was given these images."""

import numpy as np
import pytest
import torch
from harness.batches import detection_batch, label_batch, mask_batch
from harness.coco_scenes import CLASSES, Scene, made_scenes, metrics_of, tied_scenes

from scalablevit.tasks.classification.bootstrap import HitStatistics
from scalablevit.tasks.classification.task import AccuracyMetric
from scalablevit.tasks.detection.bootstrap import PrecisionStatistics
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.segmentation.confusion import ConfusionMetric

CHOICES = [[0, 1, 2, 3, 4, 5], [5, 5, 0, 2, 2, 2], [3, 3, 3, 3, 3, 3]]


@pytest.mark.parametrize("chosen", CHOICES)
@pytest.mark.parametrize("top", [1, 5])
def test_accuracies(chosen, top):
    draws = torch.Generator().manual_seed(0)
    logits, labels = torch.rand((6, 7), generator=draws), torch.randint(7, (6,), generator=draws)
    per_sample = task_kind("classification").build_sample_statistics(f"top{top}", CLASSES)
    assert isinstance(per_sample, HitStatistics)
    for part in ([0, 1, 2, 3], [4, 5]):
        per_sample.update(logits[part], label_batch(labels=labels[part], indices=torch.tensor(part)))
    metric = AccuracyMetric(7)
    metric.update(logits[chosen], label_batch(labels=labels[chosen]))
    assert per_sample.metric(np.array(chosen)) == pytest.approx(metric.compute()[f"val/top{top}"])
    assert per_sample.indices == list(range(6))


@pytest.mark.parametrize("chosen", CHOICES)
@pytest.mark.parametrize("name", ["miou", "macc", "aacc"])
def test_overlaps(chosen, name):
    """Images of different sizes; class 4 occurs nowhere, some pixels are ignored."""
    draws = np.random.default_rng(0)
    sizes = draws.integers(3, 9, (6, 2))
    masks = [torch.from_numpy(draws.choice([0, 1, 2, 3, 255], size).astype(np.uint8)) for size in sizes]
    found = [torch.from_numpy(draws.integers(0, 4, size).astype(np.uint8)) for size in sizes]
    per_sample = task_kind("segmentation").build_sample_statistics(name, CLASSES)
    per_sample.update(found, mask_batch(masks=masks, indices=torch.arange(6)))
    metric = ConfusionMetric(CLASSES)
    metric.update([found[i] for i in chosen], mask_batch(masks=[masks[i] for i in chosen]))
    assert per_sample.metric(np.array(chosen)) == pytest.approx(metric.compute()[f"val/{name}"])


def test_overlap_without_a_labelled_pixel_is_no_number():
    per_sample = task_kind("segmentation").build_sample_statistics("miou", CLASSES)
    per_sample.update([torch.zeros(2, 2)], mask_batch(masks=[torch.full((2, 2), 255)], indices=torch.arange(1)))
    assert np.isnan(per_sample.metric(np.array([0])))


def _per_sample(scenes: list[Scene], metric: str) -> PrecisionStatistics:
    per_sample = task_kind("detection").build_sample_statistics(metric, CLASSES)
    assert isinstance(per_sample, PrecisionStatistics)
    per_sample.update(
        [found for _, _, found in scenes],
        detection_batch(
            indices=torch.tensor([number for number, _, _ in scenes]), instances=[truth for _, truth, _ in scenes]
        ),
    )
    return per_sample


@pytest.mark.parametrize("make", [made_scenes, tied_scenes])
@pytest.mark.parametrize("metric", ["box_ap", "mask_ap"])
def test_precisions(metric, make):
    """Against the metric given copies of images under other numbers, which matches every copy anew."""
    scenes = make(0)
    per_sample = _per_sample(scenes, metric)
    draws = np.random.default_rng(1)
    choices = [np.arange(len(scenes)), *(draws.integers(len(scenes), size=len(scenes)) for _ in range(4))]
    for chosen in choices:
        copies = [(slot, *scenes[i][1:]) for slot, i in enumerate(chosen)]
        expected = metrics_of(copies)[f"val/{metric}"]
        assert per_sample.metric(chosen) == pytest.approx(expected, abs=1e-12), chosen
    assert per_sample.indices == [number for number, _, _ in scenes]


def test_precision_without_an_object_is_no_number():
    scenes = made_scenes(0)
    assert np.isnan(_per_sample(scenes, "box_ap").metric(np.full(len(scenes), 3)))  # the image with neither
