"""The detection task on data from disk: batches, predictions in original pixels, answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as run_lengths

from scalablevit.config.data import Shapes
from scalablevit.config.recipe import Stage
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.decoding import read_image
from scalablevit.data.loader import build_loader
from scalablevit.data.sampler import Key
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources import open_source
from scalablevit.jobs.result import BEST_METRIC
from scalablevit.tasks.detection import DetectionTask
from scalablevit.tasks.task import build_task

CPU = torch.device("cpu")
SMALL = {"neck_channels": 16, "head_channels": 32, "anchor_size": 8, "proposals": 40, "roi_samples": 16}

MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(Shapes(train_images=6, val_images=4, image_size=64), root / "data")
    return root


def _data(**changes: Any) -> dict[str, Any]:
    splits = {
        split: {"images": f"detection/{split}", "annotations": f"detection/annotations/instances_{split}.json"}
        for split in ("train", "val")
    }
    return {**splits, "short_side": 96, "long_side": 96, **changes}


def _task(make: MakeStage, root: Path, **data: Any) -> DetectionTask:
    stage = make(data=_data(**data), task={"kind": "detection", "head": "mask_rcnn", **SMALL, "score_threshold": 0.0})
    task = build_task(stage, open_source(stage.data, "train", root).classes)
    assert isinstance(task, DetectionTask)
    return task


def _batch(task: DetectionTask, root: Path, split: Any) -> dict[str, Any]:
    dataset = SampleDataset(open_source(task.data, split, root), task.data, seed=0, train=split == "train")
    keys = [[Key(0, 0, 0), Key(1, 0, 1), Key(2, 0, 2)]]
    return next(iter(build_loader(dataset, keys, task.collate(split), workers=0, device=CPU)))


def test_a_training_batch_keeps_boxes_and_masks_in_step(detection_stage: MakeStage, folder: Path) -> None:
    task = _task(detection_stage, folder, train_short_sides=[48, 80], flip=0.5)
    batch = _batch(task, folder, "train")
    assert batch["samples"] == 3
    for image, boxes, masks in zip(batch["image"], batch["boxes"], batch["masks"], strict=True):
        assert 48 <= image.shape[0] <= 80
        assert masks.shape == (len(boxes), *image.shape[:2]) and len(boxes) > 0
        for box, mask in zip(boxes.tolist(), masks, strict=True):
            rows, columns = mask.nonzero().T
            seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(box) - np.array(seen)).max() <= 2


def test_training_goes_down_on_one_batch_and_predictions_fit_the_truth(
    detection_stage: MakeStage, folder: Path
) -> None:
    """Some steps on three pictures: the whole way from disk to figures leads to the same objects."""
    task = _task(detection_stage, folder, flip=0.0)
    torch.manual_seed(0)
    model = task.build_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = task.prepare(_batch(task, folder, "train"), "train", ())
    losses = []
    for step in range(90):
        torch.manual_seed(step)
        loss, parts = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert "loss_mask" in parts and losses[-1] < 0.5 * losses[0]
    task.data = task.data.model_copy(update={"val": task.data.train})
    evaluated = task.prepare(_batch(task, folder, "val"), "val", ())
    with torch.no_grad():
        found = task.predict(model.train(mode=False), evaluated)
    metric = task.metric()
    metric.update(found, evaluated)
    figures = metric.compute()
    assert figures["val/box_ap50"] > 0.3 and figures["val/mask_ap50"] > 0.2, figures
    assert figures[task.best_metric] == figures["val/box_ap"]
    for each, truth in zip(found, evaluated["instances"], strict=True):
        assert truth.size == (64, 64), "truth is in original pixels"
        assert each["boxes"].max() <= 64.01
        assert run_lengths.decode(each["masks"]).shape[:2] == (64, 64)


def test_the_answer_is_plain_and_in_the_images_pixels(detection_stage: MakeStage, folder: Path) -> None:
    task = _task(detection_stage, folder)
    torch.manual_seed(0)
    model = task.build_model().eval()
    image = read_image(next((folder / "data" / "detection" / "val").glob("*.jpg")), 10**9)
    image = np.ascontiguousarray(image[:48])
    with torch.inference_mode():
        answer = task.answer(model, image, CPU)
    count = len(answer["boxes"])
    assert 0 < count == len(answer["scores"]) == len(answer["labels"]) == len(answer["masks"])
    assert answer["scores"] == sorted(answer["scores"], reverse=True)
    assert set(answer["labels"]) <= set(task.classes)
    assert all(0 <= x1 <= x2 <= 64.01 and 0 <= y1 <= y2 <= 48.01 for x1, y1, x2, y2 in answer["boxes"])
    assert isinstance(answer["masks"][0]["counts"], str)
    assert run_lengths.decode(answer["masks"][0]).shape == (48, 64)


def test_the_best_metric_is_the_one_that_the_jobs_name(detection_stage: MakeStage) -> None:
    stage = detection_stage()
    assert DetectionTask(stage, ("a",)).best_metric == BEST_METRIC[stage.task.kind]
