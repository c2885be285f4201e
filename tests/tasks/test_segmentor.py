import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm.optim
import torch
import torch.distributed as dist
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scalablevit.config.task import Segmentation
from scalablevit.models.backbone import build_pyramid
from scalablevit.tasks.segmentation.segmentor import BACKBONE, Segmentor, head_configs

CLASSES = 4
SMALL = {
    "semantic_fpn": Segmentation(
        kind="segmentation", head="semantic_fpn", neck_channels=16, head_channels=16, dropout=0
    ),
    "upernet": Segmentation(
        kind="segmentation", head="upernet", head_channels=16, dropout=0, auxiliary_loss_weight=0.3
    ),
}
HEADS = pytest.mark.parametrize("head", list(SMALL))
BACKBONES = pytest.mark.parametrize("name", ["test_resnet", "scalablevit_tiny"])


def _segmentor(head: str, name: str = "test_resnet") -> Segmentor:
    torch.manual_seed(0)
    pyramid = build_pyramid(name)
    return Segmentor(pyramid, head_configs(SMALL[head], pyramid.channels, CLASSES))


def _batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(1)
    masks = torch.randint(CLASSES, (2, 64, 64), generator=draws, dtype=torch.uint8)
    masks[0, :20] = 255
    return torch.randn(2, 3, 64, 64, generator=draws), masks


@HEADS
@BACKBONES
def test_losses_and_weights_are_those_of_mmsegs_own_network(head: str, name: str) -> None:
    ours = _segmentor(head, name)
    heads = head_configs(SMALL[head], ours.backbone.channels, CLASSES)
    plain = MODELS.build({"type": "EncoderDecoder", "backbone": {"type": BACKBONE, "name": name}, **heads})
    plain.load_state_dict(ours.state_dict())  # strict: the names are mmseg's
    images, masks = _batch()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=mask[None].long())) for mask in masks]
    ours.eval()
    theirs = plain.eval().loss(images, samples)
    losses = ours(images, masks)
    expected = {"loss_ce": theirs["decode.loss_ce"], "acc": theirs["decode.acc_seg"].squeeze() / 100}
    if head == "upernet":
        expected["loss_aux"] = theirs["aux.loss_ce"]
    assert losses.keys() == expected.keys()
    for part, loss in losses.items():
        torch.testing.assert_close(loss, expected[part], rtol=1e-6, atol=1e-6)


@HEADS
def test_loss_is_cross_entropy_over_all_pixels_with_the_auxiliary_weight(head: str) -> None:
    model = _segmentor(head).eval()
    images, masks = _batch()
    losses = model(images, masks)

    def cross_entropy(logits: Tensor) -> Tensor:
        full = nn.functional.interpolate(logits, (64, 64), mode="bilinear")
        summed = nn.functional.cross_entropy(full, masks.long(), ignore_index=255, reduction="sum")
        return summed / masks.numel()

    torch.testing.assert_close(losses["loss_ce"], cross_entropy(model(images)))
    if head == "upernet":
        auxiliary = cross_entropy(model.auxiliary_head(model.extract_feat(images)))
        torch.testing.assert_close(losses["loss_aux"], 0.3 * auxiliary)


@HEADS
def test_ignored_pixels_give_neither_loss_nor_gradient(head: str) -> None:
    model = _segmentor(head)
    images, masks = _batch()
    losses = model(images, torch.full_like(masks, 255))
    total = sum(loss for name, loss in losses.items() if "loss" in name)
    assert total.item() == 0
    assert losses["acc"].item() == 0
    total.backward()
    assert all(not parameter.grad.any() for parameter in model.parameters())


@HEADS
@pytest.mark.parametrize("size", [(64, 96), (61, 75), (33, 40)])
def test_logits_have_a_quarter_of_any_image_size(head: str, size: tuple[int, int]) -> None:
    logits = _segmentor(head, "scalablevit_tiny").eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, CLASSES, -(-size[0] // 4), -(-size[1] // 4))


def test_without_weight_the_auxiliary_head_does_not_exist() -> None:
    task = SMALL["upernet"].model_copy(update={"auxiliary_loss_weight": 0.0})
    assert list(head_configs(task, (8, 16, 32, 64), CLASSES)) == ["decode_head"]


def test_head_widths_follow_the_paper_unless_given() -> None:
    for head, width in (("semantic_fpn", 128), ("upernet", 512)):
        task = Segmentation.model_validate({"kind": "segmentation", "head": head})
        assert head_configs(task, (8, 16, 32, 64), CLASSES)["decode_head"]["channels"] == width


@pytest.mark.parametrize("name", ["resnet18", "scalablevit_tiny"])  # deep enough to fall off
def test_layers_fall_off_from_the_heads_to_the_stem(name: str) -> None:
    model = _segmentor("semantic_fpn", name)
    groups = timm.optim.param_groups_layer_decay(
        model, 0.05, no_weight_decay_list=tuple(model.no_weight_decay()), layer_decay=0.5
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == {id(p) for p in model.parameters()}
    by_name = {name: scales[id(p)] for name, p in model.named_parameters()}
    heads = {scale for name, scale in by_name.items() if not name.startswith("backbone.")}
    assert heads == {1.0}
    backbone = [scale for name, scale in by_name.items() if name.startswith("backbone.")]
    assert max(backbone) == 0.5
    assert min(backbone) == next(iter(by_name.values()))
    assert len(set(backbone)) > 5


def test_position_encodings_keep_their_weight() -> None:
    model = _segmentor("semantic_fpn", "scalablevit_tiny")
    kept = model.no_weight_decay()
    assert kept
    assert kept <= {name for name, _ in model.named_parameters()}
    decayed = timm.optim.param_groups_weight_decay(model, 0.05, no_weight_decay_list=tuple(kept))
    without = {id(p) for group in decayed if not group["weight_decay"] for p in group["params"]}
    assert all(id(model.get_parameter(name)) in without for name in kept)


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@HEADS
@pytest.mark.usefixtures("one_rank")
def test_every_parameter_takes_part_under_distributed_data_parallel(head: str) -> None:
    model = _segmentor(head, "scalablevit_tiny")
    wrapped = DistributedDataParallel(model)
    for _ in range(2):  # the second pass raises if a parameter got no gradient in the first
        losses = wrapped(*_batch())
        sum(loss for name, loss in losses.items() if "loss" in name).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_batch_norm_of_heads_becomes_synchronized_by_torchs_own_conversion() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(_segmentor("upernet", "scalablevit_tiny"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.decode_head.modules())
    assert model.eval()(torch.randn(1, 3, 64, 64)).shape == (1, CLASSES, 16, 16)  # still works on a CPU


IMPORT = """
import sys, torch, warnings
before = (torch.load, torch.save, list(warnings.filters))
from scalablevit.config.task import Segmentation
from scalablevit.models.backbone import build_pyramid
filters = list(warnings.filters)
from scalablevit.tasks.segmentation.segmentor import Segmentor, head_configs
task = Segmentation(kind="segmentation", head="upernet")
pyramid = build_pyramid("test_resnet")
Segmentor(pyramid, head_configs(task, pyramid.channels, 2))(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64).byte())
assert (torch.load, torch.save) == before[:2] and list(warnings.filters) == filters
"""


def test_mmseg_says_nothing_and_changes_nothing_for_others() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", IMPORT]
    said = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=200)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
