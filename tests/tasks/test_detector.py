from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
import torch.distributed as dist
from harness.batches import detection_batch
from hotcoco import mask as run_lengths
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.data.batch import DetectionTrainBatch
from scalablevit.data.instances import Instances
from scalablevit.data.mixing import normalize
from scalablevit.models.backbone import build_pyramid
from scalablevit.tasks.detection import detector
from scalablevit.tasks.detection.detector import build_detector, paste_masks
from scalablevit.tasks.detection.task import DetectionTask

MakeStage = Callable[..., Stage]
CLASSES = ("cat", "dog", "bird")
SIZES = ((96, 128), (144, 96))
"""Their sizes are those of the stage, so that torchvision's own transform has nothing to scale."""
NO_NORMALIZATION = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
"""Beside each other both networks must get the same bits: regions are ranked and drawn, so that a rounding elsewhere
is another region here. Normalization is compared by itself."""
FILL = (0.006, -0.002, 0.002)
"""About the mean colour in 8 bits."""
HEADS = pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
BACKBONES = pytest.mark.parametrize("name", ["test_resnet", "scalablevit_tiny"])


def _task(head: str, **fields: Any) -> Detection:
    small = {"neck_channels": 16, "head_channels": 24, "proposals": 40, "roi_samples": 32}
    return Detection.model_validate({"kind": "detection", "head": head, **small, **fields})


def _detector(head: str, name: str = "test_resnet", **fields: Any) -> Any:
    torch.manual_seed(0)
    return build_detector(_task(head, **fields), build_pyramid(name), len(CLASSES), FILL)


def _target(boxes: list[list[float]], labels: list[int], size: tuple[int, int]) -> dict[str, Tensor]:
    masks = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[round(top) : round(bottom), round(left) : round(right)] = 1
        mask[round(top) : round(top) + 4, round(left) : round(left) + 4] = 0  # not the whole box
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels).long(), "masks": masks}


def _batch() -> DetectionTrainBatch:
    """Two images as the training loader gives them: one with three objects, one with a single small one."""
    draws = np.random.default_rng(3)
    targets = [
        _target([[8.0, 10.0, 60.5, 70.0], [50.0, 20.0, 120.0, 90.0], [3.0, 60.0, 40.0, 95.0]], [0, 2, 1], SIZES[0]),
        _target([[30.0, 100.0, 45.0, 120.0]], [1], SIZES[1]),
    ]
    return DetectionTrainBatch(
        images=[torch.from_numpy(draws.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES],
        boxes=[target["boxes"] for target in targets],
        labels=[target["labels"] for target in targets],
        masks=[target["masks"] for target in targets],
        indices=torch.arange(2),
        samples=2,
    )


def _nothing(size: tuple[int, int]) -> Instances:
    return Instances(
        size, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, np.float32), []
    )


def _torchvision(head: str) -> Any:
    """torchvision's own network over its own ResNet-18, with what it takes to detect something without training."""
    torch.manual_seed(1)
    common: dict[str, Any] = {"backbone_name": "resnet18", "weights": None, "norm_layer": nn.BatchNorm2d}
    sides = {"min_size": 96, "max_size": 160, **NO_NORMALIZATION}
    if head == "mask_rcnn":
        model: Any = MaskRCNN(resnet_fpn_backbone(**common, trainable_layers=5), num_classes=1 + len(CLASSES), **sides)
    else:
        levels = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(512, 256)}
        backbone = resnet_fpn_backbone(**common, **levels, trainable_layers=5)
        model = RetinaNet(backbone, num_classes=len(CLASSES), detections_per_img=100, **sides)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, -2.0)
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_logits.weight", "bbox_reg.weight", "bbox_pred.weight", "cls_score.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model


def _own_name(name: str) -> str:
    return name.replace("backbone.body.", "backbone.body.body.")


def _pair(make: MakeStage, head: str) -> tuple[DetectionTask, Any, Any]:
    """The task with the recipe's defaults, its network and torchvision's, with equal weights."""
    data = {"mean": NO_NORMALIZATION["image_mean"], "std": NO_NORMALIZATION["image_std"]}
    task = DetectionTask(make(task={"head": head}, data=data, model={"name": "resnet18"}), CLASSES)
    ours, theirs = task.build_model(), _torchvision(head)
    weights = {
        name.replace("backbone.body.", "backbone.body.body."): each for name, each in theirs.state_dict().items()
    }
    ours.load_state_dict(weights)  # strict: parameters are torchvision's, by name and shape
    return task, ours, theirs


@HEADS
def test_losses_and_gradients_are_those_of_torchvisions_own_network(detection_stage: MakeStage, head: str) -> None:
    task, ours, theirs = _pair(detection_stage, head)
    batch = _batch()
    shift = 1 if head == "mask_rcnn" else 0
    targets = [
        {"boxes": boxes, "labels": labels + shift, "masks": masks}
        for boxes, labels, masks in zip(batch.boxes, batch.labels, batch.masks, strict=True)
    ]
    images = [image.permute(2, 0, 1) / 255 for image in batch.images]
    for model in (ours, theirs):  # torchvision's transform draws a size for each image, even where there is one only
        model.transform.register_forward_hook(lambda *_: (torch.manual_seed(7), None)[1])
    expected = theirs.train()(images, targets)
    sum(expected.values()).backward()
    loss, parts = task.loss(ours.train(), task.prepare(batch, "train", (0, 0, 0, 0)))
    loss.backward()
    assert parts.keys() == expected.keys()
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name].detach(), rtol=1e-5, atol=1e-6)
        assert part > 0
    torch.testing.assert_close(loss.detach(), sum(expected.values()).detach(), rtol=1e-5, atol=1e-6)
    for name, parameter in theirs.named_parameters():
        own = ours.get_parameter(_own_name(name)).grad
        assert (own - parameter.grad).norm() <= 1e-3 * parameter.grad.norm() + 1e-6, name


@HEADS
def test_detections_are_those_of_torchvisions_own_network(detection_stage: MakeStage, head: str) -> None:
    task, ours, theirs = _pair(detection_stage, head)
    batch = detection_batch(images=_batch().images, instances=[_nothing(size) for size in SIZES])
    with torch.no_grad():
        # one by one: its padding to the largest image of a batch changes what it finds
        expected = [theirs.eval()([image.permute(2, 0, 1) / 255])[0] for image in batch.images]
        found = task.predict(ours.eval(), task.prepare(batch, "val", ()))
    for own, their in zip(found, expected, strict=True):
        assert len(own.boxes) == len(their["boxes"]) > 10
        torch.testing.assert_close(own.boxes, their["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(own.scores, their["scores"], rtol=1e-4, atol=1e-5)
        assert torch.equal(own.labels, their["labels"] - int(head == "mask_rcnn"))
        assert set(own.labels.tolist()) <= {0, 1, 2}
        if head == "mask_rcnn":
            masks = torch.from_numpy(run_lengths.decode(own.masks)).permute(2, 0, 1).bool()
            assert masks.any()
            assert (masks != (their["masks"][:, 0] >= 0.5)).float().mean() < 1e-4


def test_normalization_is_torchvisions(detection_stage: MakeStage) -> None:
    task = DetectionTask(detection_stage(), CLASSES)
    batch = _batch()
    theirs = MaskRCNN(resnet_fpn_backbone(backbone_name="resnet18", weights=None), num_classes=2).transform
    for own, image in zip(task.prepare(batch, "train", (0, 0, 0, 0)).images, batch.images, strict=True):
        torch.testing.assert_close(own, theirs.normalize(image.permute(2, 0, 1) / 255), rtol=1e-5, atol=1e-6)


@HEADS
def test_with_default_fields_the_settings_are_torchvisions(head: str) -> None:
    ours: Any = build_detector(Detection(kind="detection", head=head), build_pyramid("resnet18"), len(CLASSES), FILL)
    theirs = _torchvision(head)
    if head == "retinanet":
        pairs = [(ours, theirs), (ours.head.regression_head, theirs.head.regression_head)]
        anchors = ours.anchor_generator, theirs.anchor_generator
    else:
        pairs = [(ours.rpn, theirs.rpn), (ours.roi_heads, theirs.roi_heads)]
        anchors = ours.rpn.anchor_generator, theirs.rpn.anchor_generator
    assert anchors[0].sizes == anchors[1].sizes
    assert anchors[0].aspect_ratios == anchors[1].aspect_ratios
    for own, their in pairs:
        assert _settings(own) == _settings(their)


def _settings(module: Any) -> dict[str, Any]:
    """The plain values of a module and of its matchers, samplers and box coders."""
    values: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, int | float | str | dict) and not name.startswith(("_forward", "_backward")):
            values[name] = value
        elif type(value).__module__ == "torchvision.models.detection._utils":
            values[name] = vars(value)
    return {name: value for name, value in values.items() if name not in {"_modules", "_parameters", "_buffers"}}


def test_the_recipes_fields_reach_the_network() -> None:
    common = {"anchor_size": 8, "score_threshold": 0.2, "nms_threshold": 0.4, "max_detections": 7}
    model = _detector("mask_rcnn", **common)
    assert model.rpn._pre_nms_top_n == model.rpn._post_nms_top_n == {"training": 80, "testing": 40}
    assert model.rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    heads = model.roi_heads
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.2, 0.4, 7)
    assert heads.fg_bg_sampler.batch_size_per_image == 32
    assert heads.box_head.fc6.weight.shape == (24, 16 * 49)
    assert heads.mask_predictor.mask_fcn_logits.weight.shape == (4, 16, 1, 1)
    model = _detector("retinanet", **common)
    assert model.anchor_generator.sizes[0] == (8, 10, 12)
    assert model.anchor_generator.sizes[4] == (128, 161, 203)
    assert (model.score_thresh, model.nms_thresh, model.detections_per_img) == (0.2, 0.4, 7)


@pytest.mark.parametrize("width", [16, 160])
def test_p6_is_made_from_c5_also_where_both_have_as_many_channels(width: int) -> None:
    model = _detector("retinanet", "scalablevit_tiny", neck_channels=width).eval()
    backbone = model.backbone
    assert backbone.body.channels[-1] == 160
    images = torch.randn(1, 3, 96, 160)
    levels = list(backbone(images).values())
    c5 = backbone.body(images)[-1]
    p6 = backbone.fpn.extra_blocks.p6(c5)
    torch.testing.assert_close(levels[3], p6)
    torch.testing.assert_close(levels[4], backbone.fpn.extra_blocks.p7(p6.relu()))
    assert [tuple(level.shape[-2:]) for level in levels] == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]


def test_mask_rcnn_sees_levels_of_strides_4_to_64() -> None:
    levels = _detector("mask_rcnn", "scalablevit_tiny").backbone(torch.randn(1, 3, 128, 192)).values()
    assert [tuple(level.shape[-2:]) for level in levels] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert {level.shape[1] for level in levels} == {16}


@HEADS
def test_new_layers_are_drawn_as_the_paper_says(head: str) -> None:
    model = _detector(head, neck_channels=64, head_channels=128)
    for name, module in model.backbone.fpn.named_modules():
        if isinstance(module, nn.Conv2d):
            fan = module.in_channels * module.weight[0, 0].numel(), module.out_channels * module.weight[0, 0].numel()
            bound = (6 / sum(fan)) ** 0.5
            assert 0.98 * bound < module.weight.abs().max() <= bound, name
            assert not module.bias.any()
    heads = [model.head] if head == "retinanet" else [model.rpn, model.roi_heads]
    layers = [(name, each) for part in heads for name, each in part.named_modules() if hasattr(each, "weight")]
    assert len(layers) >= 10
    for name, layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15), name
        if name == "classification_head.cls_logits":
            torch.testing.assert_close(layer.bias.sigmoid(), torch.full_like(layer.bias, 0.01))
        else:
            assert not layer.bias.any(), name


@HEADS
def test_images_are_only_padded_and_detections_left_as_they_are(head: str) -> None:
    model = _detector(head)
    images = [torch.randn(3, 60, 97), torch.randn(3, 90, 40)]
    targets = [{"boxes": torch.tensor([[1.0, 2.0, 30.0, 40.0]])}] * 2
    batch, kept = model.transform(images, targets)
    assert batch.tensors.shape == (2, 3, 96, 128)
    assert batch.image_sizes == [(60, 97), (90, 40)]
    assert torch.equal(batch.tensors[0, :, :60, :97], images[0])
    assert torch.equal(batch.tensors[1, :, :90, :40], images[1])
    for stacked, (height, width) in zip(batch.tensors, batch.image_sizes, strict=True):
        for channel, value in zip(stacked, FILL, strict=True):
            assert (channel[height:] == value).all() and (channel[:, width:] == value).all()
    assert kept is targets
    found: list[dict[str, Tensor]] = [{"boxes": torch.rand(3, 4), "masks": torch.rand(3, 1, 28, 28)}]
    assert model.transform.postprocess(found, [(60, 97)], [(60, 97)]) is found


@HEADS
def test_boxes_keep_their_precision_under_autocast(head: str) -> None:
    """torchvision makes anchors, and decodes boxes, in the type of the maps: bfloat16 has 8 bits for 1000 pixels."""
    model = _detector(head, score_threshold=0.0, max_detections=20).eval()
    generator = model.anchor_generator if head == "retinanet" else model.rpn.anchor_generator
    anchors: list[Tensor] = []
    generator.register_forward_hook(lambda module, inputs, outputs: anchors.append(outputs[0]))
    images = [torch.randn(3, 64, 1312)]
    with torch.no_grad():
        model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(images)[0]
    assert torch.equal(*anchors)
    assert anchors[1].dtype == torch.float32
    assert all(value.dtype == torch.float32 for name, value in found.items() if name != "labels")
    boxes = found["boxes"]
    assert (boxes != boxes.bfloat16().float()).any()
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target = _target([[1000.0, 3.0, 1050.0, 60.0]], [1], (64, 1312))
        assert all(torch.isfinite(loss) for loss in model(images, [target]).values())


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@HEADS
@BACKBONES
@pytest.mark.usefixtures("one_rank")
def test_every_parameter_takes_part_also_where_no_image_shows_an_object(head: str, name: str) -> None:
    model = _detector(head, name)
    wrapped = DistributedDataParallel(model)
    images = [normalize(image[None], (0.5,) * 3, (0.2,) * 3)[0] for image in _batch().images]
    empty = [_target([], [], size) for size in SIZES]
    shown = [{name: getattr(_batch(), name)[number] for name in ("boxes", "labels", "masks")} for number in range(2)]
    for targets in (empty, shown, empty):  # a pass raises if a parameter got no gradient in the one before
        model.zero_grad(set_to_none=True)
        losses = wrapped(images, targets)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        grads = {each: parameter.grad for each, parameter in model.named_parameters() if parameter.requires_grad}
        assert [each for each, grad in grads.items() if grad is None or not torch.isfinite(grad).all()] == []


@HEADS
def test_only_the_norm_of_a_map_that_nobody_sees_is_not_trained(head: str) -> None:
    model = _detector(head, "scalablevit_tiny")
    untrained = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    unseen = {f"backbone.body.body.feature_norms.0.{name}" for name in ("weight", "bias")}
    assert untrained == (unseen if head == "retinanet" else set())


def test_without_its_finest_maps_a_pyramid_gives_the_others_unchanged() -> None:
    pyramid = build_pyramid("scalablevit_tiny").eval()
    images = torch.randn(1, 3, 64, 96)
    full = pyramid(images)
    channels = pyramid.channels
    pyramid.drop_finest(1)
    assert pyramid.channels == channels[1:]
    assert pyramid.strides == (8, 16, 32)
    for own, whole in zip(pyramid(images), full[1:], strict=True):
        assert torch.equal(own, whole)


@HEADS
@pytest.mark.parametrize("name", ["resnet18", "scalablevit_tiny"])  # deep enough to fall off
def test_layers_fall_off_from_the_heads_to_the_stem(head: str, name: str) -> None:
    model = _detector(head, name)
    groups = timm.optim.param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=tuple(model.no_weight_decay()), layer_decay=0.5
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert scales.keys() == {id(p) for p in trained.values()}
    backbone = [scales[id(p)] for name, p in trained.items() if name.startswith("backbone.body.")]
    assert {scales[id(p)] for name, p in trained.items() if not name.startswith("backbone.body.")} == {1.0}
    assert max(backbone) == 0.5
    assert min(backbone) == backbone[0]
    assert len(set(backbone)) > 5


def test_position_encodings_keep_their_weight() -> None:
    model = _detector("mask_rcnn", "scalablevit_tiny")
    kept = model.no_weight_decay()
    assert kept
    assert kept <= {name for name, _ in model.named_parameters()}


def test_masks_are_pasted_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    masks = torch.rand(7, 1, 28, 28, generator=draws)
    corners = torch.rand(7, 2, generator=draws) * 30
    boxes = torch.cat([corners, corners + 5 + torch.rand(7, 2, generator=draws) * 40], dim=1)
    expected = paste_masks_in_image(masks, boxes, (60, 70))[:, 0] >= 0.5
    assert expected.any()
    monkeypatch.setattr(detector, "PASTED_ELEMENTS", 3 * 60 * 70 + 5)
    parts = list(paste_masks(masks, boxes, (60, 70)))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat(parts), expected)
    monkeypatch.setattr(detector, "PASTED_ELEMENTS", 1)  # an image larger than the bound still gets its masks
    assert torch.equal(torch.cat(list(paste_masks(masks, boxes, (60, 70)))), expected)
    assert sum(len(part) for part in paste_masks(masks[:0], boxes[:0], (60, 70))) == 0


def test_padding_keeps_the_gradients_of_a_fresh_network_small() -> None:
    """Tokens of exactly zero in the padding: LayerNorm upon LayerNorm, the gradient's norm was 10^7."""
    image = torch.randn((3, 100, 128), generator=torch.Generator().manual_seed(0))  # 28 rows of padding
    boxes = torch.tensor([[10.0, 20, 90, 90]])
    target = {"boxes": boxes, "labels": torch.ones(1, dtype=torch.int64), "masks": torch.ones(1, 100, 128)}
    norms = {}
    for name, fill in (("zeros", (0.0, 0.0, 0.0)), ("mean colour", FILL)):
        torch.manual_seed(0)
        model = build_detector(_task("mask_rcnn"), build_pyramid("scalablevit_tiny"), len(CLASSES), fill).train()
        sum(model([image, image], [target, target]).values()).backward()
        norms[name] = float(nn.utils.clip_grad_norm_(model.parameters(), 1e12))
    assert norms["mean colour"] < 100
    assert norms["zeros"] > 100 * norms["mean colour"], (
        "zeros do no harm any more: padding may become torchvision's again"
    )
