from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import timm
import torch
from harness.batches import mask_batch
from safetensors.torch import save_file
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.data.batch import MaskBatch
from scalablevit.data.dataset import SampleDataset
from scalablevit.data.loader import build_loader
from scalablevit.data.sampler import Key
from scalablevit.data.sources.opening import open_source
from scalablevit.models.backbone import Pyramid
from scalablevit.models.weights import load_init_weights
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.segmentation.predictor import MaskPredictor
from scalablevit.tasks.segmentation.segmentor import Segmentor
from scalablevit.tasks.segmentation.task import SegmentationTask

CLASSES = ("red", "blue", "green")
COLORS = np.array([[200, 30, 30], [30, 30, 200], [30, 200, 30]], np.uint8)
CPU = torch.device("cpu")
SLIDING = {"sliding": {"window": 64, "stride": 48}}

MakeStage = Callable[..., Stage]


def _scene(number: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture whose class is its colour: red, a blue part and a green corner."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 + 4 * number :] = 1
    mask[: height // 2, : width // 2] = 2
    return COLORS[mask], mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of different sizes as JPEG, masks as PNG with an ignored border row."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("\n".join(CLASSES))
    for number, size in enumerate([(64, 80), (70, 64), (64, 80), (96, 150)]):
        image, mask = _scene(number, *size)
        mask[-1] = 255
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{number}.jpg"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{number}.png"), mask)
    return tmp_path


def _batches(task: SegmentationTask, root: Path, *, train: bool) -> list[dict[str, Any]]:
    split = "train" if train else "val"
    dataset = SampleDataset(open_source(task.data, split, root), task.data, seed=0, train=train)
    keys = [[Key(0, 0, 0), Key(1, 0, 1), Key(2, 0, 2)], [Key(3, 0, 3)]]
    loader = build_loader(dataset, keys, task.collate(split), workers=0, device=CPU)
    return [task.prepare(batch, split, (0, 0, 0, number)) for number, batch in enumerate(loader)]


def _train(task: SegmentationTask, model: Segmentor, batch: dict[str, Any], steps: int) -> list[float]:
    """The loss before each step; afterwards batch norm's averages are those of the batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    model.train()
    for _ in range(steps):
        loss, _ = task.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # plain mean over the passes that follow
            module.reset_running_stats()
    with torch.no_grad():
        task.loss(model, batch)
    return losses


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_it_learns_from_files_and_is_right_at_the_masks_own_sizes(
    segmentation_stage: MakeStage, folder: Path, head: str
) -> None:
    task = build_task(segmentation_stage(task={"head": head, "head_channels": 32}), CLASSES)
    assert isinstance(task, SegmentationTask)
    torch.manual_seed(0)
    model = task.build_model()
    losses = _train(task, model, _batches(task, folder, train=True)[0], steps=30)
    assert losses[-1] < losses[0] / 4
    model.eval()
    for inference in ({}, SLIDING, {"test_time_augmentation": {"scales": [1.0, 1.25]}}):
        stage = segmentation_stage(task={"head": head, "head_channels": 32, **inference})
        evaluated = SegmentationTask(stage, CLASSES)
        augmentation = task_kind("segmentation").build_augmentation(stage, CLASSES)
        metric = evaluated.metric()
        with torch.no_grad():
            for batch in _batches(evaluated, folder, train=False):
                predictions = (augmentation or evaluated).predict(model, batch)
                assert [each.shape for each in predictions] == [mask.shape for mask in batch.masks]
                metric.update(predictions, batch)
        metric.synchronize()
        metrics = metric.compute()
        assert metrics["val/samples"] == 4
        assert metrics[evaluated.best_metric] > 0.85  # constant predictions stay below 0.2
        assert set(metrics) >= {f"val/iou/{name}" for name in CLASSES}


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_reported_parts_add_up_to_the_loss(segmentation_stage: MakeStage, head: str) -> None:
    task = SegmentationTask(segmentation_stage(task={"head": head}), CLASSES)
    model = task.build_model().eval()
    batch = _crops(2)
    batch.masks[:, :9] = 255
    loss, parts = task.loss(model, batch)
    assert loss.requires_grad
    assert parts.keys() == ({"loss_ce", "loss_aux", "acc"} if head == "upernet" else {"loss_ce", "acc"})
    torch.testing.assert_close(loss.detach(), sum(part for name, part in parts.items() if name != "acc"))
    logits = torch.nn.functional.interpolate(model(batch.images), (64, 64), mode="bilinear")
    right = (logits.argmax(dim=1) == batch.masks)[:, 9:].float().mean()
    torch.testing.assert_close(parts["acc"], right)
    assert all(part.shape == () and not part.requires_grad for part in parts.values())


def _crops(images: int) -> MaskBatch:
    draws = torch.Generator().manual_seed(3)
    return mask_batch(
        images=torch.randn(images, 3, 64, 64, generator=draws),
        masks=torch.randint(3, (images, 64, 64), generator=draws, dtype=torch.uint8),
    )


def test_a_lone_image_has_the_mean_loss_of_itself(segmentation_stage: MakeStage) -> None:
    task = SegmentationTask(segmentation_stage(task={"head": "upernet", "dropout": 0.0}), CLASSES)
    model = task.build_model()
    one = _crops(1)
    assert torch.isfinite(task.loss(model.train(), one)[0])
    model.eval()
    losses = model(one.images, one.masks)
    expected = losses["loss_ce"] + losses["loss_aux"]
    torch.testing.assert_close(task.loss(model, one)[0], expected)


@pytest.mark.parametrize(
    ("sections", "refused"),
    [
        ({"task": {"head": "upernet"}, "training": {"global_batch_size": 3}, "cluster": {"workers": 2}}, True),
        ({"task": {"head": "upernet"}, "training": {"global_batch_size": 4}, "cluster": {"workers": 2}}, False),
        ({"task": {"head": "upernet"}, "training": {"global_batch_size": 4, "accumulation_steps": 4}}, True),
        ({"training": {"global_batch_size": 1}}, False),
        ({"training": {"global_batch_size": 1}, "data": {"crop_size": 32}}, True),
        (
            {
                "task": {"head": "upernet"},
                "training": {"global_batch_size": 2},
                "cluster": {"workers": 2, "gpus_per_worker": 1},
            },
            False,
        ),
        (
            {
                "task": {"head": "upernet"},
                "training": {"global_batch_size": 2},
                "cluster": {"workers": 2, "min_workers": 1, "gpus_per_worker": 1},
            },
            True,
        ),
    ],
)
def test_batch_norm_that_could_see_one_image_is_refused(
    segmentation_stage: MakeStage, sections: dict[str, Any], refused: bool
) -> None:
    stage = segmentation_stage(**sections)
    SegmentationTask(stage, CLASSES)  # one that is trained already predicts whatever its batch was
    if not refused:
        task_kind("segmentation").check_training(stage)
        return
    with pytest.raises(UserError, match="batch norm no variance") as error:
        task_kind("segmentation").check_training(stage)
    assert error.value.where == "training.global_batch_size"


def test_one_class_is_refused(segmentation_stage: MakeStage) -> None:
    with pytest.raises(UserError, match=r"at least 2 classes, not 1 \(thing\)"):
        SegmentationTask(segmentation_stage(), ("thing",))


@pytest.mark.parametrize("name", ["test_resnet", "scalablevit_tiny"])
def test_a_classifiers_weights_go_into_the_backbone(segmentation_stage: MakeStage, tmp_path: Path, name: str) -> None:
    torch.manual_seed(5)
    classifier = timm.create_model(name, num_classes=7)
    save_file(
        {key: value.contiguous() for key, value in classifier.state_dict().items()}, tmp_path / "model.safetensors"
    )
    task = SegmentationTask(segmentation_stage(model={"name": name}), CLASSES)
    model = task.build_model()
    backbone = task.backbone(model)
    assert isinstance(backbone, Pyramid)
    assert backbone is model.backbone
    report = load_init_weights(backbone, tmp_path / "model.safetensors")
    learned = classifier.state_dict()
    taken = [key for key in learned if f"body.{key}" in backbone.state_dict()]
    assert len(taken) >= len(backbone.state_dict()) - 8
    for key in taken:
        assert torch.equal(model.state_dict()[f"backbone.body.{key}"], learned[key])
    assert report.loaded == len(taken)


@pytest.mark.parametrize("inference", [{}, SLIDING])
def test_a_prediction_is_a_png_of_class_numbers_with_names_and_shares(
    segmentation_stage: MakeStage, inference: dict[str, Any]
) -> None:
    task = SegmentationTask(segmentation_stage(task=inference), CLASSES)
    torch.manual_seed(0)
    model = task.build_model().eval()
    image, _ = _scene(1, 75, 130)
    with torch.no_grad():
        prediction = MaskPredictor(task.stage, CLASSES).predict(model, image, CPU).to_dict()
        expected = task.predict(
            model,
            task.prepare(mask_batch(images=[_resized(task, image)], masks=[torch.zeros(75, 130)]), "val", ()),
        )[0]
    assert list(prediction) == ["mask_png", "classes", "shares"]
    labels = cv2.imdecode(np.frombuffer(prediction["mask_png"], np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(labels, expected.numpy())
    shares = dict(zip(prediction["classes"], prediction["shares"], strict=True))
    assert shares == {CLASSES[number]: (labels == number).mean() for number in np.unique(labels)}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def _resized(task: SegmentationTask, image: np.ndarray) -> Tensor:
    height, width = image.shape[:2]
    factor = min(task.data.short_side / min(height, width), task.data.long_side / max(height, width))
    size = (round(width * factor), round(height * factor))
    return torch.from_numpy(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def test_recipe_options_reach_the_network(segmentation_stage: MakeStage) -> None:
    stage = segmentation_stage(
        model={"name": "scalablevit_tiny", "drop_path_rate": 0.3, "options": {"local_interaction": "lem"}},
        task={"head": "upernet", "head_channels": 24, "dropout": 0.25, "auxiliary_loss_weight": 0.7},
    )
    model = SegmentationTask(stage, CLASSES).build_model()
    assert isinstance(model, Segmentor)
    assert model.decode_head.conv_seg.in_channels == 24
    assert model.decode_head.dropout.p == model.auxiliary_head.dropout.p == 0.25
    assert model.auxiliary_head.loss_decode.loss_weight == 0.7
    assert max(getattr(module, "drop_prob", 0) or 0 for module in model.backbone.modules()) == pytest.approx(0.3)
