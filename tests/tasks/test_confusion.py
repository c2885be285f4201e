from pathlib import Path

import pytest
import torch
from harness.batches import mask_batch
from harness.ranks import call_on_ranks
from hypothesis import given
from hypothesis import strategies as st
from mmseg.evaluation import IoUMetric
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.tasks.segmentation.confusion import ConfusionMetric

CLASSES = ("sky", "road", "car", "tree", "boat")


def _images(seed: int, labelled: list[int], predicted: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    draws = torch.Generator().manual_seed(seed)
    masks, predictions = [], []
    for size in ((7, 9), (5, 5), (11, 3)):
        mask = torch.tensor(labelled)[torch.randint(len(labelled), size, generator=draws)]
        guess = torch.tensor(predicted)[torch.randint(len(predicted), size, generator=draws)]
        right = torch.rand(size, generator=draws) < 0.5
        predictions.append(torch.where(right & (mask != 255), mask, guess).to(torch.uint8))
        masks.append(mask.to(torch.uint8))
    return masks, predictions


def _metrics(masks: list[Tensor], predictions: list[Tensor]) -> dict[str, float]:
    metric = ConfusionMetric(CLASSES)
    for mask, predicted in zip(masks, predictions, strict=True):
        metric.update([predicted], mask_batch(masks=[mask]))
    return metric.compute()


def _mmseg(masks: list[Tensor], predictions: list[Tensor]) -> dict[str, Tensor]:
    areas = [
        IoUMetric.intersect_and_union(predicted.long(), mask.long(), len(CLASSES), ignore_index=255)
        for mask, predicted in zip(masks, predictions, strict=True)
    ]
    return IoUMetric.total_area_to_metrics(*(sum(area) for area in zip(*areas, strict=True)))


@given(
    seed=st.integers(0, 1000),
    labelled=st.sets(st.sampled_from([0, 1, 2, 3, 4, 255]), min_size=1).filter(lambda labels: labels != {255}),
    predicted=st.sets(st.sampled_from(range(5)), min_size=1),
)
def test_equals_mmsegs_metric(seed: int, labelled: set[int], predicted: set[int]) -> None:
    masks, predictions = _images(seed, sorted(labelled), sorted(predicted))
    metrics, theirs = _metrics(masks, predictions), _mmseg(masks, predictions)
    assert metrics["val/aacc"] == pytest.approx(float(theirs["aAcc"]), abs=1e-6)
    assert metrics["val/miou"] == pytest.approx(float(torch.tensor(theirs["IoU"]).nanmean()), abs=1e-6)
    assert metrics["val/macc"] == pytest.approx(float(torch.tensor(theirs["Acc"]).nanmean()), abs=1e-6)
    for name, iou in zip(CLASSES, theirs["IoU"].tolist(), strict=True):
        assert (f"val/iou/{name}" in metrics) == (iou == iou)
        assert metrics.get(f"val/iou/{name}", 0.0) == pytest.approx(iou if iou == iou else 0.0, abs=1e-6)


def test_metrics_by_hand_with_an_ignored_pixel_and_classes_that_are_absent_or_only_predicted() -> None:
    mask = torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 1, 1, 2]], dtype=torch.uint8)
    extra_mask = torch.tensor([[1]], dtype=torch.uint8)
    extra_predicted = torch.tensor([[3]], dtype=torch.uint8)
    metrics = _metrics([mask, extra_mask], [predicted, extra_predicted])
    assert metrics == pytest.approx(
        {
            "val/miou": (1 / 2 + 1 / 3 + 0) / 3,
            "val/macc": (1 / 2 + 1 / 2) / 2,
            "val/aacc": 2 / 4,
            "val/samples": 2,
            "val/iou/sky": 1 / 2,
            "val/iou/road": 1 / 3,
            "val/iou/tree": 0,
        }
    )


def test_masks_without_any_class_are_the_users_to_mend() -> None:
    ignored = torch.full((3, 3), 255, dtype=torch.uint8)
    with pytest.raises(UserError, match="no pixel of the validation split"):
        _metrics([ignored], [torch.zeros_like(ignored)])


def test_ranks_add_up_also_when_one_saw_nothing(tmp_path: Path) -> None:
    def counts(seen: bool) -> tuple[list[list[int]], list[int]]:
        metric = ConfusionMetric(("a", "b"))
        if seen:
            metric.update([torch.tensor([[0, 1, 1]])], mask_batch(masks=[torch.tensor([[0, 0, 1]])]))
        metric.synchronize()
        return metric.counts.tolist(), metric.samples.tolist()

    assert call_on_ranks([lambda: counts(True), lambda: counts(False)], tmp_path) == [([[1, 1], [0, 1]], [1])] * 2


def test_classes_of_any_script_have_a_metric_each() -> None:
    """As in the case class-names-unicode."""
    metric = ConfusionMetric(("背景", "道路", "建筑"))
    metric.update([torch.tensor([[0, 0, 1, 2, 2]])], mask_batch(masks=[torch.tensor([[0, 1, 1, 2, 2]])]))
    metrics = metric.compute()
    assert {name: value for name, value in metrics.items() if name.startswith("val/iou/")} == pytest.approx(
        {"val/iou/背景": 1 / 2, "val/iou/道路": 1 / 2, "val/iou/建筑": 1.0}
    )
