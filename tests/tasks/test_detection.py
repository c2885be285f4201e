import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from harness.batches import detection_batch
from hotcoco import mask as run_lengths
from safetensors.torch import save_file
from torch import Tensor

from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import DetectionTrainBatch
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.instances import Instances
from scalablevit.data.loader import build_loader
from scalablevit.data.sampler import Key
from scalablevit.data.shapes import CLASSES, write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.models.backbone import Pyramid
from scalablevit.models.weights import load_init_weights
from scalablevit.tasks.detection.costs import DetectorCosts
from scalablevit.tasks.detection.predictor import DetectionPredictor
from scalablevit.tasks.detection.task import DetectionTask
from scalablevit.tasks.registry import build_task

MakeStage = Callable[..., Stage]
CPU = torch.device("cpu")
SMALL = {"neck_channels": 16, "head_channels": 32, "anchor_size": 12, "proposals": 60, "roi_samples": 64}
HEADS = pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
PARTS = {
    "retinanet": {"classification", "bbox_regression"},
    "mask_rcnn": {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's pictures of known shapes."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(Shapes(train_images=2, val_images=3, image_size=64), folder / "data")
    return folder


def _task(make: MakeStage, head: str, *, name: str = "test_resnet", **fields: Any) -> DetectionTask:
    splits = {
        split: {"images": f"detection/{split}", "annotations": f"detection/annotations/instances_{split}.json"}
        for split in ("train", "val")
    }
    masks = {"instance_masks": head == "mask_rcnn"}
    stage = make(
        data={**splits, "short_side": 80, "long_side": 80, "flip": 0.0, **masks},
        model={"name": name},
        task={"head": head, **SMALL, **fields},
    )
    task = build_task(stage, CLASSES)
    assert isinstance(task, DetectionTask)
    return task


def _batch(task: DetectionTask, root: Path, split: str, *, train: bool) -> dict[str, Any]:
    dataset = SampleDataset(open_source(task.data, split, root), task.data, seed=0, train=train)
    kind = "train" if train else "val"
    keys = [[Key(number, 0, number) for number in range(len(dataset))]]
    batch = next(iter(build_loader(dataset, keys, task.collate(kind), workers=0, device=CPU)))
    return task.prepare(batch, kind, (0, 0, 0, 0))


@HEADS
def test_it_learns_from_files_and_finds_the_objects_in_the_original_images(
    detection_stage: MakeStage, root: Path, head: str
) -> None:
    """It learns two pictures by heart, which the loader scales from 64 to 80 pixels."""
    task = _task(detection_stage, head)
    torch.manual_seed(0)
    model = task.build_model().train()
    batch = _batch(task, root, "train", train=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80 if head == "mask_rcnn" else 60):
        loss, _ = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain mean over the passes that follow
            module.reset_running_stats()
    with torch.no_grad():
        task.loss(model, batch)
    model.eval()
    metric = task.metric()
    seen = _batch(task, root, "train", train=False)
    with torch.no_grad():
        metric.update(task.predict(model, seen), seen)
    metric.synchronize()
    metrics = metric.compute()
    assert metrics["val/samples"] == 2
    assert metrics[task.best_metric] == metrics["val/box_ap"]
    assert metrics["val/box_ap50"] > 0.5
    assert ("val/mask_ap50" in metrics) == (head == "mask_rcnn")
    if head == "mask_rcnn":
        assert metrics["val/mask_ap50"] > 0.3


@HEADS
def test_reported_parts_add_up_to_the_loss(detection_stage: MakeStage, root: Path, head: str) -> None:
    task = _task(detection_stage, head)
    loss, parts = task.loss(task.build_model().train(), _batch(task, root, "train", train=True))
    assert loss.requires_grad
    assert parts.keys() == PARTS[head]
    assert all(part.shape == () and not part.requires_grad for part in parts.values())
    torch.testing.assert_close(loss.detach(), sum(parts.values()))


@HEADS
def test_images_without_objects_are_negatives(detection_stage: MakeStage, head: str) -> None:
    """All of a batch, whose loss is finite and falls."""
    task = _task(detection_stage, head)
    torch.manual_seed(0)
    model = task.build_model().train()
    draws = torch.Generator().manual_seed(0)
    batch = DetectionTrainBatch(
        images=list(torch.randint(256, (2, 80, 80, 3), dtype=torch.uint8, generator=draws)),
        boxes=[torch.zeros(0, 4)] * 2,
        labels=[torch.zeros(0, dtype=torch.int64)] * 2,
        masks=None if head == "retinanet" else [torch.zeros(0, 80, 80, dtype=torch.uint8)] * 2,
        samples=2,
    )
    prepared = task.prepare(batch, "train", (0, 0, 0, 0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss, parts = task.loss(model, prepared)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert 0 < losses[-1] < losses[0]
    assert all(not parts[name] for name in parts if "reg" in name or "mask" in name)


class _Fixed(torch.nn.Module):
    """Predicts as a detector in evaluation mode would, each image by its height."""

    def __init__(self, predictions: dict[int, dict[str, Tensor]]) -> None:
        super().__init__()
        self.predictions = predictions

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.predictions[image.shape[-2]] for image in images]


def _left_half(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    """Detections whose masks cover the left half of their boxes."""
    masks = torch.zeros(len(boxes), 1, 28, 28)
    masks[..., :14] = 1
    scores = torch.linspace(0.9, 0.3, len(boxes))
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels),
        "scores": scores,
        "masks": masks,
    }


def _instances(height: int, width: int) -> Instances:
    nothing = np.zeros(0)
    return Instances(
        (height, width), np.zeros((0, 4), np.float32), nothing.astype(np.int64), nothing.astype(bool),
        nothing.astype(np.float32), [],
    )  # fmt: skip


def test_detections_come_back_in_the_pixels_of_the_original_image(detection_stage: MakeStage) -> None:
    """The network's image is half as wide and a third as high as the original."""
    task = _task(detection_stage, "mask_rcnn")
    model = _Fixed({40: _left_half([[10.0, 10.0, 40.0, 30.0], [0.0, 0.0, 50.0, 40.0]], [1, 6]), 20: _left_half([], [])})
    images = [torch.zeros(3, 40, 50), torch.zeros(3, 20, 20)]
    batch = detection_batch(images=images, instances=[_instances(120, 100), _instances(7, 9)])
    first, second = task.predict(model, batch)
    assert first.boxes.tolist() == [[20, 30, 80, 90], [0, 0, 100, 120]]
    assert first.labels.tolist() == [0, 5]
    assert first.scores.tolist() == pytest.approx([0.9, 0.3])
    masks = run_lengths.decode(first.masks)
    assert masks.shape == (120, 100, 2)
    rows, columns = np.nonzero(masks[..., 0])
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - [20, 30, 50, 90]).max() <= 2
    assert masks[..., 1].mean() == pytest.approx(0.5, abs=0.03)
    assert second.boxes.shape == (0, 4)
    assert second.masks == []


@HEADS
def test_a_prediction_is_plain_values_for_the_image_as_given(detection_stage: MakeStage, root: Path, head: str) -> None:
    task = _task(detection_stage, head, score_threshold=0.001, max_detections=9)
    torch.manual_seed(3)
    model = task.build_model().eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with torch.no_grad():
        prediction = DetectionPredictor(task.stage, CLASSES).predict(model, image, CPU).to_dict()
    assert list(prediction) == ["boxes", "scores", "labels", *(["masks"] if head == "mask_rcnn" else [])]
    assert {len(column) for column in prediction.values()} == {9}
    assert prediction == json.loads(json.dumps(prediction))
    assert len(pd.DataFrame([prediction]).explode(list(prediction))) == 9
    boxes = np.array(prediction["boxes"])
    assert (boxes >= 0).all() and (boxes[:, 2:] <= [70.001, 50.001]).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes[:, 2:].max() > 40  # not of some smaller image
    assert prediction["scores"] == sorted(prediction["scores"], reverse=True)
    assert set(prediction["labels"]) <= set(CLASSES)
    if head == "mask_rcnn":
        decoded = run_lengths.decode([{**mask, "counts": mask["counts"].encode()} for mask in prediction["masks"]])
        assert decoded.shape == (50, 70, 9)


@HEADS
def test_what_is_found_in_an_image_does_not_depend_on_the_images_beside_it(
    detection_stage: MakeStage, head: str
) -> None:
    task = _task(detection_stage, head, name="scalablevit_tiny", score_threshold=0.001, max_detections=9)
    torch.manual_seed(3)
    model = task.build_model().eval()
    images = [torch.randn(3, *size) for size in ((64, 64), (40, 90), (128, 96), (64, 64))]
    sizes = [_instances(*image.shape[1:]) for image in images]
    with torch.no_grad():
        alone = [
            task.predict(model, detection_batch(images=[image], instances=[size]))[0]
            for image, size in zip(images, sizes, strict=True)
        ]
        together = task.predict(model, detection_batch(images=images, instances=sizes))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=1e-4)


def test_the_first_image_does_not_decide_where_regions_are_pooled(detection_stage: MakeStage) -> None:
    """40 rows are padded to 64: torchvision takes the maps' strides from such a ratio, and keeps them."""
    model: Any = _task(detection_stage, "mask_rcnn", name="scalablevit_tiny").build_model().eval()
    with torch.no_grad():
        model([torch.zeros(3, 40, 90)])
    for pool in (model.roi_heads.box_roi_pool, model.roi_heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        assert (pool.map_levels.k_min, pool.map_levels.k_max) == (2, 5)


def test_an_image_that_shows_nothing_has_an_empty_prediction(detection_stage: MakeStage) -> None:
    task = _task(detection_stage, "mask_rcnn", score_threshold=0.99)
    with torch.no_grad():
        predictor = DetectionPredictor(task.stage, CLASSES)
        prediction = predictor.predict(task.build_model().eval(), np.zeros((30, 90, 3), np.uint8), CPU).to_dict()
    assert prediction == {"boxes": [], "scores": [], "labels": [], "masks": []}


@pytest.mark.parametrize("name", ["test_resnet", "scalablevit_tiny"])
@HEADS
def test_a_classifiers_weights_go_into_the_backbone(
    detection_stage: MakeStage, tmp_path: Path, name: str, head: str
) -> None:
    torch.manual_seed(5)
    classifier = timm.create_model(name, num_classes=7)
    learned = {key: value.contiguous() for key, value in classifier.state_dict().items()}
    save_file(learned, tmp_path / "model.safetensors")
    task = _task(detection_stage, head, name=name)
    model = task.build_model()
    backbone = task.backbone(model)
    assert isinstance(backbone, Pyramid)
    report = load_init_weights(backbone, tmp_path / "model.safetensors")
    taken = [key for key in learned if f"body.{key}" in backbone.state_dict()]
    assert report.loaded == len(taken) >= len(backbone.state_dict()) - 8
    assert all(torch.equal(model.state_dict()[f"backbone.body.body.{key}"], learned[key]) for key in taken)


def test_no_class_and_other_tasks_are_refused(detection_stage: MakeStage, segmentation_stage: MakeStage) -> None:
    with pytest.raises(UserError, match="at least 1 class"):
        DetectionTask(detection_stage(), ())
    with pytest.raises(TypeError, match="not a detection stage"):
        DetectionTask(segmentation_stage(), ("thing",))


@pytest.mark.parametrize(
    ("short", "long", "size"), [(800, 1333, (800, 1280)), (96, 96, (96, 96)), (64, 256, (64, 102))]
)
def test_costs_are_given_for_an_image_of_the_papers_aspect(
    detection_stage: MakeStage, short: int, long: int, size: tuple[int, int]
) -> None:
    assert DetectorCosts(detection_stage(data={"short_side": short, "long_side": long}), CLASSES).size == size


@HEADS
def test_counted_parameters_are_those_of_the_network(detection_stage: MakeStage, head: str) -> None:
    task = _task(detection_stage, head, name="scalablevit_tiny")
    assert DetectorCosts(task.stage, CLASSES).count().parameters == sum(
        parameter.numel() for parameter in task.build_model().parameters()
    )
