"""ScalableViT: parity with the released model, timm's method set, and what torch can do with it."""

import copy
import importlib.util
import json
import logging
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

import scalablevit.models  # noqa: F401  registers the variants
from scalablevit.config.errors import UserError
from scalablevit.models.attention import ScalableAttention, WindowAttention

PARITY = Path(__file__).parents[1] / "data/parity"
TOLERANCE = 1e-4


def _load_fill() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deterministic_fill", PARITY / "deterministic_fill.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return dict(json.loads((PARITY / "expected.json").read_text()))


@pytest.fixture(scope="module")
def released(expected: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict with the released names and shapes, filled as the reference was."""
    fill = _load_fill()
    return {
        name: torch.as_tensor(fill.fill_parameter(name, tuple(shape))) for name, shape in expected["state_dict"].items()
    }


@pytest.fixture(scope="module")
def released_file(released: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "scalable_vit_small.pth"
    torch.save({"model": released}, path)
    return path


def from_file(name: str, path: Path, **kwargs: Any) -> nn.Module:
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)


def tiny(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("scalablevit_tiny", **{"num_classes": 7, "drop_path_rate": 0.0} | kwargs)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_parity_with_the_released_model(expected: dict[str, Any], released_file: Path) -> None:
    model = from_file("scalablevit_small", released_file).eval()
    x = torch.as_tensor(_load_fill().fill_input(expected["input"], tuple(expected["input_shape"])))
    features, stages = model.forward_intermediates(x, output_fmt="NHWC")
    pooled = model.forward_head(features, pre_logits=True)
    logits = model.get_classifier()(pooled)

    assert (logits[0, :32] - torch.tensor(expected["logits_first32"])).abs().max() < TOLERANCE
    assert abs(logits.mean().item() - expected["logits_mean"]) < TOLERANCE
    assert abs(logits.std().item() - expected["logits_std"]) < TOLERANCE
    assert logits.argmax(1).tolist() == expected["logits_argmax"]
    assert (pooled[0, :16] - torch.tensor(expected["pooled_first16"])).abs().max() < TOLERANCE
    for level, reference in zip(stages, expected["stage_tokens"], strict=True):
        tokens = level.flatten(1, 2)
        assert list(tokens.shape) == reference["shape"]
        assert abs(tokens.mean().item() - reference["mean"]) < TOLERANCE
        assert abs(tokens.std().item() - reference["std"]) < TOLERANCE
        ours = tokens[0, reference["positions"]][:, : len(reference["values"][0])]
        assert (ours - torch.tensor(reference["values"])).abs().max() < TOLERANCE
    torch.testing.assert_close(model(x[:1]), logits[:1], rtol=0, atol=TOLERANCE)


def test_names_and_shapes_are_the_released_ones(expected: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = timm.create_model("scalablevit_small")
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected["state_dict"]


def test_a_released_file_loads_at_top_level_too(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(released, tmp_path / "flat.pth")
    model = from_file("scalablevit_small", tmp_path / "flat.pth")
    assert all(torch.equal(tensor, released[name]) for name, tensor in model.state_dict().items())


def test_another_class_count_drops_and_names_the_classifier(
    released: dict[str, Tensor], released_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        model = from_file("scalablevit_small", released_file, num_classes=5)
    assert "new: head.3.weight, head.3.bias" in caplog.text
    own = model.state_dict()
    assert own["head.3.weight"].shape == (5, 4096)
    assert all(torch.equal(own[name], tensor) for name, tensor in released.items() if not name.startswith("head.3"))


def test_a_released_file_becomes_a_pyramid(
    released: dict[str, Tensor], released_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pyramid = from_file("scalablevit_small", released_file, features_only=True)
    norms = [f"feature_norms.{stage}.{kind}" for stage in range(3) for kind in ("weight", "bias")]
    assert f"new: {', '.join(norms)}; " in caplog.text
    own = {name.removeprefix("model."): tensor for name, tensor in pyramid.state_dict().items()}
    assert set(own) == set(norms) | {name for name in released if not name.startswith("head.")}
    assert all(torch.equal(own[name], released[name]) for name in own if name not in norms)


def test_value_form_follows_the_checkpoint(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"channel_ratios": (2, 2, 2, 1), "num_classes": 1000}
    wide, narrow = (tiny(wide_value=wide, **arguments) for wide in (True, None))
    path = tmp_path / "wide.pth"
    torch.save(wide.state_dict(), path)
    loaded = from_file("scalablevit_tiny", path, **arguments)
    torch.testing.assert_close(loaded.eval()(images(1, 3, 64, 64)), wide.eval()(images(1, 3, 64, 64)))
    assert narrow.stages[0][1].attn.v.weight.shape != loaded.stages[0][1].attn.v.weight.shape
    with pytest.raises(RuntimeError, match="size mismatch"):
        from_file("scalablevit_tiny", path, wide_value=False, **arguments)


def test_a_file_that_lacks_more_than_the_head_is_refused(released: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name: t for name, t in released.items() if not name.startswith("stages.3")}, tmp_path / "part.pth")
    for arguments in ({}, {"num_classes": 5}, {"features_only": True}):
        with pytest.raises(UserError, match=r"stages\.3\.0\.norm1\.weight"):
            from_file("scalablevit_small", tmp_path / "part.pth", **arguments)


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_timm_never_unpickles_code(tmp_path: Path) -> None:
    torch.save({"model": {}, "payload": _Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    pickle.loads(pickle.dumps(_Payload(tmp_path / "works")))  # noqa: S301  the payload does run where pickle is trusted
    assert (tmp_path / "works").exists()
    with pytest.raises(RuntimeError, match="weights_only"):
        from_file("scalablevit_tiny", tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "channels", "depths", "rate"),
    [
        ("small", (64, 128, 256, 512), (2, 2, 20, 2), 0.2),
        ("base", (96, 192, 384, 768), (2, 2, 14, 6), 0.5),
        ("large", (128, 256, 512, 1024), (2, 6, 12, 4), 0.5),
    ],
)
def test_variants(name: str, channels: tuple[int, ...], depths: tuple[int, ...], rate: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(f"scalablevit_{name}")
    assert tuple(info["num_chs"] for info in model.feature_info) == channels
    assert tuple(len(stage) for stage in model.stages) == depths
    blocks = [block for stage in model.stages for block in stage]
    rates = [block.drop_prob for block in blocks]
    assert rates == pytest.approx([rate * index / (len(blocks) - 1) for index in range(len(blocks))])
    for stage in model.stages:
        kinds = [type(block.attn) for block in stage]
        assert kinds == [WindowAttention, ScalableAttention] * (len(stage) // 2)


def test_initialisation_is_the_released_one() -> None:
    torch.manual_seed(0)
    model = timm.create_model("scalablevit_small", num_classes=10, local_interaction="lim")
    assert model.stages[3][0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.stages[3][0].mlp.fc1.weight.abs().max() < 2
    depthwise = model.stages[3][0].attn.lim_func.weight
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    stem = model.patch_embeds[0].proj.weight
    assert stem.std().item() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.05)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    assert model.stages[0][0].norm1.eps == 1e-6
    assert model.stages[0][1].attn.norm_act[0].eps == 1e-5
    assert model.head[1].eps == 1e-6


def test_features_only_gives_normed_maps() -> None:
    model = tiny(features_only=True).eval()
    assert model.feature_info.channels() == [24, 48, 96, 160]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    with torch.no_grad():
        maps = model(images(2, 3, 65, 93))
        same = model.model.forward_intermediates(images(2, 3, 65, 93), norm=True, intermediates_only=True)
    assert [tuple(m.shape) for m in maps] == [(2, 24, 17, 24), (2, 48, 9, 12), (2, 96, 5, 6), (2, 160, 3, 3)]
    for level, other in zip(maps, same, strict=True):
        assert torch.equal(level, other)
        assert level.mean(dim=1).abs().max() < 1e-4, "a fresh LayerNorm leaves mean 0 at each position"


def test_forward_intermediates_equals_features_only_and_forward_features() -> None:
    model = tiny(feature_norms=True).eval()
    pyramid = tiny(features_only=True, out_indices=(1, 3)).eval()
    pyramid.model.load_state_dict(model.state_dict(), strict=False)
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, norm=True)
        chosen = pyramid(x)
        assert torch.equal(final, model.forward_features(x))
        assert torch.equal(maps[3].permute(0, 2, 3, 1), final)
        assert torch.equal(chosen[0], maps[1]) and torch.equal(chosen[1], maps[3])
        early = model.forward_intermediates(x, indices=[1], stop_early=True, output_fmt="NHWC", intermediates_only=True)
        raw = model.forward_intermediates(x, indices=[1], intermediates_only=True)
        assert torch.equal(early[0], raw[0].permute(0, 2, 3, 1)) and not torch.equal(raw[0], maps[1])
        last_two = model.forward_intermediates(x, indices=2, norm=True, intermediates_only=True)
        assert [tuple(m.shape) for m in last_two] == [tuple(m.shape) for m in maps[2:]]
    with pytest.raises(ValueError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_pruned_models_hold_what_they_use() -> None:
    model = tiny(feature_norms=True).eval()
    x = images(1, 3, 64, 64)
    with torch.no_grad():
        reference = model.forward_intermediates(x, norm=True, intermediates_only=True)
        assert model.prune_intermediate_layers([0, 2]) == [0, 2]
        maps = model.forward_intermediates(x, indices=[0, 2], norm=True, intermediates_only=True)
        assert torch.equal(maps[0], reference[0]) and torch.equal(maps[1], reference[2])
        assert model(x).shape == (1, 4, 4, 96), "without a head: the unpooled map of the last stage kept"
    assert model.num_features == 96
    names = {name.split(".")[0] + "." + name.split(".")[1] for name in model.state_dict()}
    assert "stages.3" not in names and "feature_norms.1" not in names and "norm.weight" not in names


@pytest.mark.parametrize("head", ["linear", "released"])
def test_reset_classifier(head: str) -> None:
    model = tiny(head=head).eval()
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        assert model(x).shape == (2, 7)
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3) and model.num_classes == 3
        assert not model.get_classifier().training
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled) and pooled.shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, 2, 2, 160)
        model.reset_classifier(4, "avg")
        assert model(x).shape == (2, 4)
    assert sum(p.numel() for p in tiny(num_classes=0).parameters()) == sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith("head.")
    )


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("pyramid", [False, True])
def test_group_matcher_orders_every_parameter(coarse: bool, pyramid: bool) -> None:
    model = tiny(feature_norms=pyramid)
    layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    assert set(layers) == {name for name, _ in model.named_parameters()}
    last = max(layers.values())
    assert last == (1 + 4 if coarse else 1 + 10)
    assert layers["patch_embeds.0.proj.weight"] == 0 and layers["head.weight"] == last
    assert layers["norm.weight"] == layers["stages.3.1.mlp.fc2.weight"] == last - 1
    assert (
        layers["patch_embeds.2.proj.weight"]
        == layers["pos_block.2.proj.0.weight"]
        == layers["stages.2.0.attn.qkv.weight"]
    )
    assert layers["stages.0.0.attn.qkv.weight"] == 1
    if pyramid:
        assert layers["feature_norms.0.weight"] == last


def test_layer_decay_and_weight_decay_groups() -> None:
    model = tiny()
    kept = model.no_weight_decay()
    assert kept == {name for name, _ in model.named_parameters() if name.startswith("pos_block.")}
    groups = param_groups_layer_decay(model, weight_decay=0.05, no_weight_decay_list=kept, layer_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    scale = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert scale[id(model.head.weight)] == (1.0, 0.05)
    assert scale[id(model.patch_embeds[0].proj.weight)] == (0.5**11, 0.05)
    assert scale[id(model.pos_block[3].proj[0].weight)][1] == 0
    free, decayed = param_groups_weight_decay(model, 0.05, no_weight_decay_list=kept)
    assert any(p is model.pos_block[0].proj[0].weight for p in free["params"])
    assert any(p is model.stages[0][0].attn.qkv.weight for p in decayed["params"])


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    logits = model(x)
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    model = tiny(drop_path_rate=0.3)
    plain = gradients(model, images(2, 3, 48, 64))
    model.set_grad_checkpointing()
    calls = []
    model.stages[2][0].register_forward_pre_hook(lambda *_: calls.append(1))
    recomputed = gradients(model, images(2, 3, 48, 64))
    assert len(calls) == 2, "the block runs again in the backward pass"
    assert torch.equal(plain[0], recomputed[0])
    assert plain[1].keys() == recomputed[1].keys() == {name for name, _ in model.named_parameters()}
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradient, recomputed[1][name], msg=name)


def test_bfloat16_autocast_trains_close_to_float32() -> None:
    model = tiny()
    x = images(4, 3, 60, 68)
    full_logits, full = gradients(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half_logits, half = gradients(model, x)
    assert half_logits.dtype == torch.bfloat16
    assert (half_logits - full_logits).norm() < 0.05 * full_logits.norm()
    for name, gradient in half.items():
        assert gradient.isfinite().all(), name
    together = [torch.cat([g.flatten() for g in grads.values()]) for grads in (full, half)]
    assert torch.cosine_similarity(*together, dim=0) > 0.99


def test_channels_last_changes_nothing() -> None:
    model = tiny().eval()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = images(2, 3, 61, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(x.contiguous(memory_format=torch.channels_last)), model(x))


@pytest.mark.parametrize("arguments", [{"window": (7, None)}, {"window": [4, 9], "local_interaction": "lem"}])
def test_windows_and_interactions_are_arguments(arguments: dict[str, Any]) -> None:
    model = tiny(**arguments).eval()
    blocks = [block.attn for stage in model.stages for block in stage if isinstance(block.attn, WindowAttention)]
    assert {layer.window for layer in blocks} == {tuple(arguments["window"])}
    assert {layer.local_interaction for layer in blocks} == {arguments.get("local_interaction", "lim")}
    assert model(images(1, 3, 63, 50)).isfinite().all()


def test_attention_pattern_replaces_scalable_attention() -> None:
    model = tiny(attention_pattern=("window",), local_interaction="none")
    assert all(isinstance(block.attn, WindowAttention) for stage in model.stages for block in stage)
    with pytest.raises(ValueError, match="attention is one of"):
        tiny(attention_pattern=("global",))


def test_plain_windows_take_the_place_of_scalable_attention_and_leave_the_others_as_they_are() -> None:
    model = tiny(attention_pattern=("window", "plain_window"))
    kinds = [[block.attn.local_interaction for block in stage] for stage in model.stages]
    assert kinds == [["lim", "none"], ["lim", "none"], ["lim", "none"] * 2, ["lim", "none"]]
    assert model(images(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (50, 71)])
def test_export_round_trip(size: tuple[int, int], tmp_path: Path) -> None:
    model = tiny().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2, 3, *size),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    x = images(3, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def test_compiled_training_step_equals_eager() -> None:
    model = tiny(depths=(2, 2, 2, 2))
    eager = gradients(model, images(2, 3, 40, 56))
    compiled_model = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled = gradients(compiled_model, images(2, 3, 40, 56))
    torch.testing.assert_close(compiled[0], eager[0], rtol=1e-4, atol=1e-5)
    for name, gradient in eager[1].items():
        torch.testing.assert_close(compiled[1]["_orig_mod." + name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.long
@pytest.mark.rotating("inductor", 30)
def test_both_kinds_of_blocks_compile_with_inductor() -> None:
    """In one graph, of one kind after the other."""
    blocks = nn.Sequential(*tiny().stages[0][:2])
    x = torch.randn(2, 13, 16, 24)
    torch.testing.assert_close(torch.compile(blocks, fullgraph=True)(x), blocks(x), rtol=1e-4, atol=1e-5)
