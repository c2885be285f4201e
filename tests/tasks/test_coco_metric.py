import contextlib
import io
import logging
import pickle
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness.batches import detection_batch
from harness.coco_scenes import (
    CLASSES,
    Scene,
    coco_detections,
    coco_truth,
    made_scene,
    made_scenes,
    metric_of,
    metrics_of,
    metrics_of_parts,
    scenes_without_objects,
    tied_scenes,
)
from harness.ranks import call_on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scalablevit.config.errors import UserError
from scalablevit.data.instances import Instances
from scalablevit.tasks.detection.coco_matching import Detections
from scalablevit.tasks.detection.coco_metric import CocoMetric

SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def _pycocotools(scenes: list[Scene], kind: str) -> COCOeval:
    """The reference's answer."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = COCO()
        truth_set.dataset = coco_truth(scenes, CLASSES)
        truth_set.createIndex()
        evaluation = COCOeval(truth_set, truth_set.loadRes(coco_detections(scenes, kind)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(6))
def test_metrics_are_pycocotools(seed: int) -> None:
    scenes = made_scenes(seed)
    metrics = metrics_of(scenes)
    assert metrics["val/samples"] == len(scenes)
    named = 1
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        reference = _pycocotools(scenes, kind)
        assert 0.02 < reference.stats[0] < 0.98
        for metric, value in zip(SUMMARY, reference.stats, strict=False):
            assert metrics.get(f"val/{name}_{metric}", -1) == pytest.approx(value, abs=1e-12), metric
            named += value != -1
        for number, class_name in enumerate(("sky_ clear", *CLASSES[1:])):
            precision = reference.eval["precision"][:, :, number, 0, 2]
            expected = precision[precision > -1].mean() if (precision > -1).any() else -1
            assert metrics.get(f"val/{name}_ap/{class_name}", -1) == pytest.approx(expected, abs=1e-12)
            named += expected != -1
    assert len(metrics) == named  # none besides those, and none without truth
    assert "val/box_ap/boat" not in metrics


def _exchanged(metric: CocoMetric) -> Any:
    """What rank 0 has of a rank."""
    return pickle.loads(pickle.dumps((metric._images, metric._streams)))  # noqa: S301  # our own bytes


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
@settings(max_examples=8)
def test_ties_crowds_and_areas_are_pycocotools_on_any_number_of_ranks(seed: int, ranks: int) -> None:
    scenes = tied_scenes(seed)
    parts = [metric_of(scenes[rank::ranks][::-1]) for rank in range(ranks)]
    metrics = parts[0]._evaluate([_exchanged(part) for part in parts])
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        reference = _pycocotools(scenes, kind)
        ours = [metrics.get(f"val/{name}_{metric}", -1) for metric in SUMMARY]
        assert ours == pytest.approx(reference.stats[:6].tolist(), abs=1e-12)
        for number, class_name in enumerate(("sky_ clear", *CLASSES[1:])):
            precision = reference.eval["precision"][:, :, number, 0, 2]
            expected = precision[precision > -1].mean() if (precision > -1).any() else -1
            assert metrics.get(f"val/{name}_ap/{class_name}", -1) == pytest.approx(expected, abs=1e-12)


def test_what_is_kept_and_exchanged_does_not_grow_with_masks() -> None:
    """5,000 images of 100 detections, boxes and masks, are at most 50 MB."""
    draws = np.random.default_rng(0)
    _, truth, found = made_scene(draws, 0, objects=7, found=100)
    sizes = []
    for images in (20, 40):
        metric = metric_of([(number, truth, found) for number in range(images)])
        sizes.append(len(pickle.dumps((metric._images, metric._streams))))
    assert sizes[1] - sizes[0] < 20 * 100 * 2 * 50


def test_missing_masks_are_refused() -> None:
    """The library would take the box of an object for its mask."""
    number, truth, found = made_scene(np.random.default_rng(0), 0, objects=2, found=3)
    for scene in ((number, replace(truth, masks=None), found), (number, truth, replace(found, masks=None))):
        with pytest.raises(ValueError, match="objects, but 0 masks"):
            metric_of([scene])


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_all_twelve_metrics_of_the_summary_are_pycocotools(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Recalls too, which the metric does not report."""
    scenes, seen = made_scenes(11), []
    named = CocoMetric._named

    def spy(metric: CocoMetric, name: str, evaluation: Any) -> dict[str, float]:
        seen.append(evaluation)
        return named(metric, name, evaluation)

    monkeypatch.setattr(CocoMetric, "_named", spy)
    metrics_of(scenes)
    (ours,) = [evaluation for evaluation in seen if evaluation.params.iouType == kind]
    theirs = _pycocotools(scenes, kind)
    np.testing.assert_allclose(ours.stats[:12], theirs.stats, atol=1e-12)


def test_boxes_alone_need_no_masks() -> None:
    scenes = made_scenes(1)
    bare = [(number, replace(truth, masks=None), replace(found, masks=None)) for number, truth, found in scenes]
    metrics = metrics_of(bare, masks=False)
    assert not [name for name in metrics if "mask" in name]
    expected = metrics_of(made_scenes(1))
    assert metrics == {name: value for name, value in expected.items() if "mask" not in name}


def test_the_order_of_images_and_batches_changes_nothing() -> None:
    scenes = made_scenes(2)
    expected = metrics_of(scenes)
    shuffled = metric_of(scenes[::-1], batch=5)
    shuffled.synchronize()
    assert shuffled.compute() == expected


def test_metrics_by_hand() -> None:
    """Two of class 1, one of them found; a wrong detection with a lower score takes nothing away."""
    boxes = np.array([[10, 10, 50, 50], [60, 60, 100, 100]], np.float32)
    nothing = np.zeros(2, bool)
    truth = Instances((120, 120), boxes, np.array([1, 1]), nothing, np.full(2, 1600, np.float32), None)
    found = Detections(
        boxes=torch.tensor([[10.0, 10, 50, 50], [0, 0, 9, 9]]),
        scores=torch.tensor([0.9, 0.4]),
        labels=torch.tensor([1, 1]),
    )
    share = 51 / 101  # of 101 recalls those up to 0.5
    assert metrics_of([(4, truth, found)], masks=False) == pytest.approx(
        {
            "val/samples": 1, "val/box_ap": share, "val/box_ap50": share, "val/box_ap75": share,
            "val/box_ap_medium": share, "val/box_ap/road": share,
        }
    )  # fmt: skip


def test_no_detection_at_all_is_an_average_precision_of_zero() -> None:
    draws = np.random.default_rng(0)
    scenes = [made_scene(draws, number, objects=4, found=0) for number in range(2)]
    metrics = metrics_of(scenes)
    assert metrics["val/box_ap"] == metrics["val/mask_ap"] == 0
    assert set(metrics.values()) == {0.0, 2.0}


def _crowds_only() -> list[Scene]:
    number, truth, found = made_scene(np.random.default_rng(0), 0, objects=2, found=3)
    crowds = Instances(truth.size, truth.boxes, truth.labels, np.ones(2, bool), truth.areas, truth.masks)
    return [(number, crowds, found)]


@pytest.mark.parametrize(
    "scenes",
    [
        [made_scene(np.random.default_rng(0), 0, objects=0, found=3)],
        [made_scene(np.random.default_rng(0), 0, objects=0, found=0)],
        _crowds_only(),
        [],
    ],
    ids=["no object", "nothing at all", "only crowds", "no image"],
)
def test_a_split_without_objects_is_the_users_to_mend(scenes: list[Scene]) -> None:
    with pytest.raises(UserError, match="validation split"):
        metrics_of(scenes)


def test_no_image_counts_twice() -> None:
    metric = metric_of(made_scenes(0))
    with pytest.raises(ValueError, match="image 3 was evaluated twice"):
        metric.update(
            [made_scenes(0)[1][2]], detection_batch(indices=torch.tensor([3]), instances=[made_scenes(0)[1][1]])
        )


def test_evaluation_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        metrics_of(made_scenes(3))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_two_ranks_know_what_one_knows(tmp_path: Path) -> None:
    """Also where one of them saw no image; the second rank starts from the last one."""
    scenes = partial(made_scenes, 4)
    expected = metrics_of(scenes())
    last = len(scenes())
    firsts = [slice(last - share) for share in (3, 0, last)]
    others = [slice(last, last - share - 1 if share < last else None, -1) for share in (3, 0, last)]
    calls = [partial(metrics_of_parts, scenes, parts) for parts in (firsts, others)]
    assert call_on_ranks(calls, tmp_path, "forkserver") == [[expected] * 3] * 2


def test_a_split_without_objects_is_refused_on_every_rank(tmp_path: Path) -> None:
    """Or the others would wait for the one that refuses."""
    calls = [partial(metrics_of_parts, scenes_without_objects, [slice(n, n + 1)]) for n in range(2)]
    results = call_on_ranks(calls, tmp_path, "forkserver")
    assert all("UserError" in result and "validation split" in result for result in results)
