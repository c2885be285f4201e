"""Which modules are a backbone's blocks, and that compiling them changes no name."""

import copy

import pytest
import timm
import torch
from torch import nn

from scalablevit.config.errors import UserError
from scalablevit.models.backbone import build_classifier, build_pyramid
from scalablevit.models.compilation import compile_blocks, repeated_blocks

BLOCKS = {
    "scalablevit_tiny": (10, "Block"),
    "resnet18": (8, "BasicBlock"),
    "swin_tiny_patch4_window7_224": (12, "SwinTransformerBlock"),
    "pvt_v2_b0": (8, "Block"),
    "convnext_atto": (12, "ConvNeXtBlock"),
    "efficientnet_b0": (15, "InvertedResidual"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_are_found(name: str) -> None:
    with torch.device("meta"):
        blocks = repeated_blocks(timm.create_model(name, num_classes=10), name)
    assert (len(blocks), {type(block).__name__ for block in blocks}) == (BLOCKS[name][0], {BLOCKS[name][1]})


def test_a_pyramid_has_the_blocks_of_its_body() -> None:
    assert len(repeated_blocks(build_pyramid("scalablevit_tiny"), "scalablevit_tiny")) == 10


@pytest.mark.parametrize("name", ["vgg11", "regnety_002"])
def test_what_has_no_blocks_is_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UserError, match=f"^training.compile: {name} has no repeated blocks") as refused:
        repeated_blocks(model, name)
    assert refused.value.where == "training.compile"


def is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None


def test_compiling_is_in_place_and_changes_no_name() -> None:
    model = build_classifier("scalablevit_tiny", 5)
    names = {"state": list(model.state_dict()), "modules": [name for name, _ in model.named_modules()]}
    compile_blocks(model, "scalablevit_tiny", one_size=True)
    assert all(map(is_compiled, repeated_blocks(model, "scalablevit_tiny"))) and not is_compiled(model)
    assert names == {"state": list(model.state_dict()), "modules": [name for name, _ in model.named_modules()]}
    assert not any(map(is_compiled, copy.deepcopy(model).modules())), "the moving average is compiled by itself"


def test_the_whole_model_is_one_graph() -> None:
    model = timm.create_model("scalablevit_tiny", depths=(2, 2, 2, 2), num_classes=5).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.compile(model, backend="eager", fullgraph=True)(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    torch.compiler.reset()
