"""What is decayed, by how much a layer learns, and at which rate."""

import copy

import pytest
import torch

from scalablevit.config.recipe import Optimizer
from scalablevit.models.backbone import build_classifier
from scalablevit.tasks.registry import build_task
from scalablevit.training.optim import build_optimizer, clip_gradients, set_learning_rate

BACKBONES = ["scalablevit_tiny", "resnet18", "swin_tiny_patch4_window7_224", "pvt_v2_b0"]


def scale_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}


def decay_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("name", BACKBONES)
def test_layer_decay_falls_from_head_to_stem_in_every_model(name, kind, make_stage, make_segmentation):
    make = make_stage if kind == "classification" else make_segmentation
    model = build_task(make(model={"name": name}), ("a", "b", "c")).build_model()
    scales = scale_by_name(model, build_optimizer(model, Optimizer(lr=1.0, layer_decay=0.5)))
    assert scales.keys() == {n for n, p in model.named_parameters() if p.requires_grad}, "every parameter once"
    heads = ("head", "fc", "decode_head", "neck")
    assert {s for n, s in scales.items() if n.startswith(heads)} == {1.0}
    stem = next(n for n, _ in model.named_parameters())
    assert scales[stem] == min(scales.values()) < 0.2
    assert len(set(scales.values())) >= 4


def test_norms_biases_and_the_position_encoding_generator_are_not_decayed():
    model = build_classifier("scalablevit_tiny", 3)
    decays = decay_by_name(model, build_optimizer(model, Optimizer(lr=1e-3, weight_decay=0.05)))
    free = {n for n, d in decays.items() if d == 0}
    assert {n for n, p in model.named_parameters() if p.ndim <= 1} <= free
    generator = {n for n in decays if n.startswith("pos_block")}
    assert generator and generator <= free
    assert all(decays[n] == 0.05 for n in decays if n.endswith(("qkv.weight", "fc1.weight", "reduction.0.weight")))


def test_layer_factors_multiply_the_rate():
    model = build_classifier("scalablevit_tiny", 3)
    optimizer = build_optimizer(model, Optimizer(lr=1.0, layer_decay=0.5))
    set_learning_rate(optimizer, 0.1)
    assert all(group["lr"] == pytest.approx(0.1 * group["lr_scale"]) for group in optimizer.param_groups)


def test_adamw_on_a_cpu_is_fused_and_goes_on_bit_for_bit():
    """Broken off after two of four steps: the state dict, through which checkpoints go, is all that it needs."""
    whole, resumed = (torch.nn.Linear(33, 7) for _ in range(2))
    resumed.load_state_dict(whole.state_dict())
    optimizer, other = (build_optimizer(model, Optimizer(lr=1e-2)) for model in (whole, resumed))
    assert optimizer.defaults["fused"]
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for one, two in zip(whole.parameters(), resumed.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        if step == 2:
            other, stored = build_optimizer(resumed, Optimizer(lr=1e-2)), copy.deepcopy(other.state_dict())
            other.load_state_dict(stored)
        optimizer.step()
        other.step()
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_clipping_returns_the_norm_before_it():
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    assert clip_gradients([parameter], None).item() == pytest.approx(6.0)
    assert parameter.grad[0].item() == 3.0
    assert clip_gradients([parameter], 1.0).item() == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, abs=1e-4)
