"""Classifiers and pyramids of four architectures, and the refusals."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from scalablevit.config.errors import UserError
from scalablevit.models.backbone import STRIDES, build_classifier, build_pyramid

SWIN = "swin_tiny_patch4_window7_224"
BACKBONES = ("scalablevit_tiny", "resnet18", SWIN, "pvt_v2_b0")


def small(name: str) -> dict[str, Any]:
    """Arguments that make Swin as quick to build and run as the others."""
    return {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)} if name == SWIN else {}


@pytest.mark.parametrize("size", [(64, 96), (75, 97)])
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_pyramid_maps_have_the_promised_shapes(name: str, size: tuple[int, int]) -> None:
    pyramid = build_pyramid(name, 0.1, **small(name)).eval()
    assert pyramid.strides == STRIDES == (4, 8, 16, 32)
    maps = pyramid(torch.randn(2, 3, *size))
    shapes = [(2, dim, -(-size[0] // s), -(-size[1] // s)) for dim, s in zip(pyramid.channels, STRIDES, strict=True)]
    assert [tuple(level.shape) for level in maps] == shapes


@pytest.mark.parametrize("name", BACKBONES)
def test_every_pyramid_parameter_is_used_and_has_a_layer(name: str) -> None:
    pyramid = build_pyramid(name, 0.0, **small(name))
    sum(level.square().mean() for level in pyramid(torch.randn(2, 3, 64, 64))).backward()
    names = {parameter_name for parameter_name, _ in pyramid.named_parameters()}
    unused = {n for n, parameter in pyramid.named_parameters() if parameter.grad is None}
    assert not unused, "DDP stops at parameters without a gradient"
    layers = pyramid.layer_indices()
    assert set(layers) == names
    assert min(layers.values()) == 0 and max(layers.values()) >= 4
    assert pyramid.no_weight_decay() <= names
    assert (name == "scalablevit_tiny") == any("feature_norms" in n for n in names)


@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_classifiers_take_other_sizes_than_their_default(name: str) -> None:
    model = build_classifier(name, 5).eval()
    assert model(torch.randn(2, 3, 96, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", BACKBONES)
def test_drop_path_rate_reaches_the_blocks(name: str) -> None:
    def highest(model: nn.Module) -> float:
        return max((getattr(module, "drop_prob", None) or 0.0 for module in model.modules()), default=0.0)

    assert highest(build_classifier(name, 5, 0.3, **small(name))) == pytest.approx(0.3)
    assert highest(build_pyramid(name, 0.3, **small(name))) == pytest.approx(0.3)
    assert highest(build_classifier(name, 5, 0.0, **small(name))) == 0


def test_memory_format_and_checkpointing_are_switched() -> None:
    pyramid = build_pyramid("scalablevit_tiny", grad_checkpointing=True, channels_last=True)
    assert pyramid.body.grad_checkpointing is True
    kernel = pyramid.body.patch_embeds[1].proj.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    plain = build_classifier("resnet18", 5)
    assert plain.grad_checkpointing is False
    assert not plain.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["scalablevit_tiny", SWIN])
def test_checkpointed_pyramid_has_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    pyramid = build_pyramid(name, 0.0, **small(name))
    x = torch.randn(1, 3, 64, 64)
    grads = []
    for enable in (False, True):
        pyramid.body.set_grad_checkpointing(enable)
        pyramid.zero_grad()
        pyramid(x)[3].square().mean().backward()
        grads.append([p.grad.clone() for p in pyramid.parameters() if p.grad is not None])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("scalablevit_smal", {}, r"unknown architecture 'scalablevit_smal'[\s\S]*scalablevit_small"),
        ("resnet18.a1_in1k", {}, r"without a tag"),
        ("resnet18", {"window": 7}, r"window=7"),
        ("vgg11", {"drop_path_rate": 0.1}, r"drop_path_rate=0.1"),
        ("scalablevit_tiny", {"img_size": 96}, r"img_size"),
        ("scalablevit_tiny", {"window": 0}, r"side below 1"),
        ("twins_svt_small", {"grad_checkpointing": True}, r"does not support gradient checkpointing"),
    ],
)
def test_what_an_architecture_does_not_take_is_refused(name: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_classifier(name, 5, **arguments)


def test_a_drop_path_rate_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no stochastic depth"):
        build_classifier("scalablevit_tiny", 5, 0.1, depths=(1, 0, 0, 0))


@pytest.mark.parametrize(
    ("name", "strides"), [("vit_tiny_patch16_224", "[16, 16"), ("mixer_s32_224", "[32, 32"), ("mobilenetv1_100", None)]
)
def test_backbones_without_the_four_strides_are_refused(name: str, strides: str | None) -> None:
    if strides is None:
        assert build_pyramid(name).channels == (128, 256, 512, 1024)
        return
    with pytest.raises(UserError, match=re.escape(f"{name} gives maps with strides {strides}")):
        build_pyramid(name)
