"""Our detectors against torchvision's own, and what training them on several ranks asks for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as run_lengths
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.data.instances import Instances
from scalablevit.models.backbone import build_pyramid
from scalablevit.tasks.detection import DetectionTask
from scalablevit.tasks.detector import build_detector, pasted_masks

CLASSES = ("cat", "dog", "bird")
HEADS = pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
SIZE = (128, 160)
FILL = (0.0, 0.0, 0.0)

MakeStage = Callable[..., Stage]


def _task(make: MakeStage, head: str) -> DetectionTask:
    """A detector of the full width on torchvision's and timm's common backbone."""
    task = {"kind": "detection", "head": head, "score_threshold": 0.01}
    return DetectionTask(make(task=task, data={"short_side": 128, "long_side": 160}), CLASSES)


def _torchvisions(head: str) -> Any:
    if head == "mask_rcnn":
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        return MaskRCNN(backbone, len(CLASSES) + 1, min_size=128, max_size=160, box_score_thresh=0.01)
    extra = LastLevelP6P7(512, 256)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5,
        returned_layers=[2, 3, 4], extra_blocks=extra,
    )  # fmt: skip
    from torchvision.models.detection.retinanet import _default_anchorgen

    return RetinaNet(
        backbone, len(CLASSES), min_size=128, max_size=160, anchor_generator=_default_anchorgen(), score_thresh=0.01,
        detections_per_img=100,
    )  # fmt: skip


def _pair(make: MakeStage, head: str) -> tuple[DetectionTask, nn.Module, Any]:
    """Our detector and torchvision's with the same weights, wide enough apart that no two scores are equal."""
    task = _task(make, head)
    torch.manual_seed(0)
    ours, theirs = task.build_model(), _torchvisions(head)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if not name.startswith("backbone") and parameter.ndim > 1:
                parameter.normal_(std=0.05)
    renamed = {
        name.replace("backbone.body.body.", "backbone.body."): value for name, value in ours.state_dict().items()
    }
    theirs.load_state_dict(renamed)
    return task, ours, theirs


def _batch(task: DetectionTask) -> dict[str, Any]:
    draws = np.random.default_rng(0)
    boxes = [torch.tensor([[10.0, 20, 90, 100], [60, 30, 150, 120]]), torch.tensor([[5.0, 5, 60, 70]])]
    masks = [torch.zeros((len(each), *SIZE), dtype=torch.uint8) for each in boxes]
    for of_image, mask in zip(boxes, masks, strict=True):
        for one, (left, top, right, bottom) in zip(mask, of_image.int().tolist(), strict=True):
            one[top:bottom, left : (left + right) // 2] = 1
    images = [torch.from_numpy(draws.integers(0, 256, (*SIZE, 3), dtype=np.uint8)) for _ in boxes]
    return {
        "image": images,
        "boxes": boxes,
        "labels": [torch.tensor([0, 2]), torch.tensor([1])],
        "masks": masks,
        "samples": 2,
        "bad": [],
        "index": torch.tensor([0, 1]),
        "instances": [_truth(each) for each in boxes],
    }


def _truth(boxes: Tensor) -> Instances:
    count = len(boxes)
    return Instances(
        SIZE, boxes.numpy(), np.zeros(count, np.int64), np.zeros(count, np.bool_), np.ones(count, np.float32), None
    )


@HEADS
def test_losses_are_torchvisions(detection_stage: MakeStage, head: str) -> None:
    task, ours, theirs = _pair(detection_stage, head)
    batch = _batch(task)
    prepared = task.prepare(batch, "train", ())
    torch.manual_seed(7)
    loss, parts = task.loss(ours.train(), prepared)
    first = 1 if head == "mask_rcnn" else 0
    targets = [
        {"boxes": boxes, "labels": labels + first, "masks": masks}
        for boxes, labels, masks in zip(batch["boxes"], batch["labels"], batch["masks"], strict=True)
    ]
    # the same floats: suppression of thousands of proposals would answer to rounding
    theirs.transform.image_mean, theirs.transform.image_std = [0.0] * 3, [1.0] * 3
    theirs.transform.torch_choice = lambda sizes: sizes[0]  # drawn, even if there is one size only
    torch.manual_seed(7)
    expected = theirs.train()(prepared["image"], targets)
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach(), rtol=1e-4, atol=1e-5, msg=name)
    torch.testing.assert_close(loss.detach(), sum(expected.values()).detach(), rtol=1e-4, atol=1e-5)


@HEADS
def test_detections_are_torchvisions(detection_stage: MakeStage, head: str) -> None:
    task, ours, theirs = _pair(detection_stage, head)
    batch = _batch(task)
    with torch.no_grad():
        found = task.predict(ours.eval(), task.prepare(batch, "val", ()))
        expected = theirs.eval()([image.permute(2, 0, 1) / 255 for image in batch["image"]])
    first = 1 if head == "mask_rcnn" else 0
    for mine, other in zip(found, expected, strict=True):
        assert len(other["boxes"]) > 5, "there is nothing to compare"
        torch.testing.assert_close(mine["scores"], other["scores"], rtol=1e-3, atol=1e-5)
        assert torch.equal(mine["labels"], other["labels"] - first)
        torch.testing.assert_close(mine["boxes"], other["boxes"], rtol=1e-3, atol=1e-2)
        if head == "mask_rcnn":
            masks = torch.from_numpy(run_lengths.decode(mine["masks"])).permute(2, 0, 1).bool()
            assert (masks != (other["masks"][:, 0] >= 0.5)).float().mean() < 1e-3


def test_p6_comes_from_c5_even_where_torchvision_would_take_p5() -> None:
    """With 512 channels in C5 and in the pyramid torchvision's block changes its source."""
    task = Detection(kind="detection", head="retinanet", neck_channels=512)
    model: Any = build_detector(task, build_pyramid("resnet18"), 3, FILL)
    block = model.backbone.fpn.extra_blocks
    assert LastLevelP6P7(512, 512).use_P5
    p5, c5 = torch.randn(1, 512, 4, 4), torch.randn(1, 512, 4, 4)
    maps, _ = block([p5], [c5], ["0"])
    torch.testing.assert_close(maps[1], block.p6(c5))


@HEADS
@pytest.mark.parametrize("name", ["resnet18", "scalablevit_tiny"])
def test_every_trained_parameter_gets_a_gradient_from_any_batch(
    detection_stage: MakeStage, head: str, name: str
) -> None:
    """Images without objects, and none at all: DistributedDataParallel would wait for missing gradients for ever."""
    small = {"neck_channels": 16, "head_channels": 32, "anchor_size": 8, "proposals": 40, "roi_samples": 16}
    stage = detection_stage(task={"kind": "detection", "head": head, **small}, model={"name": name})
    task = DetectionTask(stage, CLASSES)
    full = _batch(task)
    nothing = {
        "boxes": [torch.zeros((0, 4))] * 2,
        "labels": [torch.zeros(0, dtype=torch.int64)] * 2,
        "masks": [torch.zeros((0, *SIZE), dtype=torch.uint8)] * 2,
    }
    undecodable = {"samples": 0, "image": [], "boxes": [], "labels": [], "masks": []}
    for batch in (full, full | nothing, full | undecodable):
        torch.manual_seed(0)
        model = task.build_model().train()
        loss, _ = task.loss(model, task.prepare(batch, "train", ()))
        assert torch.isfinite(loss)
        assert (loss == 0) == (batch["samples"] == 0)
        loss.backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


@HEADS
def test_new_layers_are_drawn_as_the_paper_says(head: str) -> None:
    torch.manual_seed(0)
    model: Any = build_detector(Detection(kind="detection", head=head), build_pyramid("resnet18"), 80, FILL)
    fpn = model.backbone.fpn
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            fan = (module.in_channels + module.out_channels) * module.kernel_size[0] ** 2
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan) ** 0.5, rel=0.05)
            assert not module.bias.any()
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and not name.startswith("backbone"):
            assert float(module.weight.detach().std()) == pytest.approx(0.01, rel=0.1), name
            prior = -np.log(99) if name.endswith("cls_logits") and head == "retinanet" else 0.0
            torch.testing.assert_close(module.bias.detach(), torch.full_like(module.bias, prior), msg=name)


def test_masks_are_pasted_alike_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    masks = torch.rand((5, 1, 28, 28), generator=draws)
    boxes = torch.rand((5, 2), generator=draws) * 30
    boxes = torch.cat([boxes, boxes + 25], dim=1)
    whole = torch.cat(list(pasted_masks(masks, boxes, (64, 80))))
    monkeypatch.setattr("scalablevit.tasks.detector.PASTED_ELEMENTS", 2 * 64 * 80)
    parts = list(pasted_masks(masks, boxes, (64, 80)))
    assert len(parts) == 3
    assert torch.equal(torch.cat(parts), whole) and whole.any()


def test_padding_keeps_the_gradients_of_a_fresh_network_small(detection_stage: MakeStage) -> None:
    """Tokens of exactly zero in the padding: LayerNorm upon LayerNorm, the gradient's norm was 10^7."""
    small = {"neck_channels": 16, "head_channels": 32, "anchor_size": 8, "proposals": 40, "roi_samples": 16}
    stage = detection_stage(
        task={"kind": "detection", "head": "mask_rcnn", **small}, model={"name": "scalablevit_tiny"}
    )
    task = DetectionTask(stage, CLASSES)
    batch = _batch(task)
    for height in (128, 100):  # 100: 28 rows of padding
        torch.manual_seed(0)
        model = task.build_model().train()
        part = {**batch, "image": [image[:height] for image in batch["image"]]}
        part["boxes"] = [boxes.clamp(max=float(height)) for boxes in batch["boxes"]]
        part["masks"] = [masks[:, :height] for masks in batch["masks"]]
        loss, _ = task.loss(model, task.prepare(part, "train", ()))
        loss.backward()
        assert float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)) < 100


@HEADS
def test_in_bfloat16_boxes_are_still_made_in_full_precision(detection_stage: MakeStage, head: str) -> None:
    """Anchors and offsets rounded to bfloat16 would be off by whole pixels beyond 256."""
    task, ours, _ = _pair(detection_stage, head)
    model: Any = ours.train()
    batch = task.prepare(_batch(task), "train", ())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, parts = task.loss(model, batch)
    assert torch.isfinite(loss) and all(part.dtype == torch.float32 for part in parts.values())
    anchors = model.anchor_generator if head == "retinanet" else model.rpn.anchor_generator
    assert all(each.dtype == torch.float32 for each in anchors.cell_anchors)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = task.predict(model.eval(), batch)
    assert all(each[name].dtype == torch.float32 for each in found for name in ("boxes", "scores"))
