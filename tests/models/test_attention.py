"""IWSA and SSA against references that loop over windows and cells and never pad."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from scalablevit.models import attention
from scalablevit.models.attention import DepthwiseConv, ScalableAttention, WindowAttention, attend

DIM, HEADS = 8, 2
SIDES = st.integers(1, 17)
WINDOW_SIDES = st.none() | st.integers(1, 20)


def attention_of_one_head(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.softmax(q @ k.T * scale, dim=-1) @ v


def reference_window_attention(layer: WindowAttention, x: Tensor) -> Tensor:
    """One image at a time, one ragged window at a time, one head at a time."""
    height, width, dim = x.shape[1:]
    win_h, win_w = layer.window[0] or height, layer.window[1] or width
    head_dim = dim // layer.num_heads
    result = torch.zeros_like(x)
    values = functional.linear(x, layer.qkv.weight, layer.qkv.bias)[..., 2 * dim :]
    for image, top, left in product(range(len(x)), range(0, height, win_h), range(0, width, win_w)):
        area = (image, slice(top, top + win_h), slice(left, left + win_w))
        tokens = x[area]
        qkv = functional.linear(tokens.reshape(-1, dim), layer.qkv.weight, layer.qkv.bias)
        for head in range(layer.num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            q, k, v = (block[:, part] for block in qkv.split(dim, dim=1))
            z = attention_of_one_head(q, k, v, head_dim**-0.5)
            result[area][..., part] = z.view(*tokens.shape[:2], head_dim)
        if layer.local_interaction == "lem":
            window_values = values[area].permute(2, 0, 1)[None]
            result[area] += layer.lim_func(window_values)[0].permute(1, 2, 0)
    if layer.local_interaction == "lim":
        result += layer.lim_func(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return functional.linear(result, layer.proj.weight, layer.proj.bias)


def reference_scalable_attention(layer: ScalableAttention, x: Tensor) -> Tensor:
    """The reduced map cell by cell over its real tokens, then one head at a time."""
    batch, height, width, dim = x.shape
    step = layer.spatial_reduction
    q = layer.q(x).reshape(batch, height * width, -1)
    if step == 1:
        k, v = layer.kv(x).reshape(batch, height * width, -1).split(dim, dim=-1)
    else:
        depthwise, pointwise = layer.reduction
        cells = []
        for top, left in product(range(0, height, step), range(0, width, step)):
            real = x[:, top : top + step, left : left + step]
            kernel = depthwise.weight[:, 0, : real.shape[1], : real.shape[2]]
            cells.append(torch.einsum("bhwc,chw->bc", real, kernel) + depthwise.bias)
        reduced = functional.linear(torch.stack(cells, 1), pointwise.weight[:, :, 0, 0], pointwise.bias)
        reduced = layer.norm_act(reduced)
        k, v = layer.k(reduced), layer.v(reduced)
    images = []
    for one in range(batch):
        heads = zip(*(t[one].chunk(layer.num_heads, dim=-1) for t in (q, k, v)), strict=True)
        images.append(torch.cat([attention_of_one_head(*head, layer.scale) for head in heads], dim=-1))
    return layer.proj(torch.stack(images)).view(x.shape)


@pytest.mark.parametrize("interaction", ["lim", "lem", "none"])
@pytest.mark.parametrize("window", [(7, 7), (3, 5), (7, None), (None, 4), (None, None), (7, 10**9), (1, 1)])
@pytest.mark.parametrize("size", [(14, 21), (13, 9), (5, 3), (1, 1)])
@torch.no_grad()
def test_window_attention_equals_the_loop_over_ragged_windows(
    interaction: attention.LocalInteraction, window: attention.Window, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(DIM, HEADS, window, interaction).double()
    x = torch.randn(2, *size, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_window_attention(layer, x), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.tuples(WINDOW_SIDES, WINDOW_SIDES), st.sampled_from(["lim", "lem", "none"]))
@torch.no_grad()
def test_window_attention_property(
    height: int, width: int, window: attention.Window, interaction: attention.LocalInteraction
) -> None:
    torch.manual_seed(height * 100 + width)
    layer = WindowAttention(DIM, HEADS, window, interaction).double()
    x = torch.randn(1, height, width, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_window_attention(layer, x), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SIDES, SIDES, st.sampled_from([(1, 1.0), (2, 1.25), (4, 0.5), (8, 2.0)]), st.sampled_from([None, False, True]))
@torch.no_grad()
def test_scalable_attention_property(
    height: int, width: int, reduction: tuple[int, float], wide_value: bool | None
) -> None:
    torch.manual_seed(height * 100 + width)
    layer = ScalableAttention(DIM, HEADS, *reduction, wide_value).double()
    x = torch.randn(2, height, width, DIM, dtype=torch.float64)
    torch.testing.assert_close(layer(x), reference_scalable_attention(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [2, 4])
def test_sums_over_patches_equal_the_reduction_s_convolution(step: int) -> None:
    torch.manual_seed(0)
    attention = ScalableAttention(16, 4, step, 1.25).double()
    x = torch.randn(2, 3 * step, 2 * step, 16, dtype=torch.float64, requires_grad=True)
    sums, expected = attention._patch_sums(x), attention.reduction[0](x.permute(0, 3, 1, 2))
    torch.testing.assert_close(sums, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(sums)
    inputs = (x, attention.reduction[0].weight, attention.reduction[0].bias)
    found, wanted = (torch.autograd.grad((each * weight).sum(), inputs) for each in (sums, expected))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_gradients_reach_real_tokens_as_in_the_loop() -> None:
    torch.manual_seed(0)
    layer = WindowAttention(DIM, HEADS, (4, 4), "lim").double()
    x = torch.randn(1, 6, 7, DIM, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(1, 6, 7, DIM, dtype=torch.float64)
    ours = torch.autograd.grad(layer(x), [x, *layer.parameters()], cotangent)
    theirs = torch.autograd.grad(reference_window_attention(layer, x), [x, *layer.parameters()], cotangent)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=0, atol=1e-11)


@torch.no_grad()
def test_lim_crosses_a_window_border_and_lem_and_none_do_not() -> None:
    for interaction, crosses in (("lim", True), ("lem", False), ("none", False)):
        layer = WindowAttention(DIM, HEADS, (4, 4), interaction)
        x = torch.randn(1, 4, 8, DIM)
        changed = x.clone()
        changed[:, :, 4] += 1  # first column of the second window
        difference = (layer(changed) - layer(x)).abs().amax(dim=(0, 1, 3))
        assert (difference[3] > 1e-6) == crosses, interaction
        assert difference[:3].max() == 0, interaction


def test_no_mask_is_built_where_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = attention._real_positions
    monkeypatch.setattr(attention, "_real_positions", lambda *args: calls.append(args) or original(*args))
    layer = WindowAttention(DIM, HEADS, (7, 7))
    layer(torch.randn(1, 14, 7, DIM))
    layer(torch.randn(1, 5, 6, DIM))  # smaller than the window: one window of the map's size
    assert not calls
    layer(torch.randn(1, 13, 7, DIM))
    assert len(calls) == 1


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_pieces_equals_attention_in_one(masked: bool) -> None:
    q, k, v = torch.randn(3, 11, HEADS, 5, 4).unbind(0)
    mask = (torch.arange(5) < torch.arange(11)[:, None] % 5 + 1)[:, None, None] if masked else None
    whole = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask, batch_limit=4), whole)
    torch.testing.assert_close(attend(q, k, v, mask, batch_limit=11), whole)


@pytest.mark.parametrize(("start", "other"), [(None, True), (True, None)])
@torch.no_grad()
def test_a_checkpoint_decides_the_value_form_unless_it_was_given(start: bool | None, other: bool | None) -> None:
    source = ScalableAttention(DIM, HEADS, 2, 1.25, other)
    target = ScalableAttention(DIM, HEADS, 2, 1.25, start)
    x = torch.randn(1, 6, 6, DIM)
    if start is not None:
        with pytest.raises(RuntimeError, match="size mismatch"):
            target.load_state_dict(source.state_dict())
        return
    parameters = list(target.parameters())
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(x), source(x))
    assert all(a is b for a, b in zip(parameters, target.parameters(), strict=True)), "an optimizer would lose them"
    target.load_state_dict(ScalableAttention(DIM, HEADS, 2, 1.25, False).state_dict())
    assert target.v.weight.shape == (DIM, 10)


def test_scale_follows_the_channel_ratio() -> None:
    assert math.isclose(ScalableAttention(64, 2, 8, 1.25).scale, 40**-0.5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WindowAttention(8, 3), "multiple of num_heads"),
        (lambda: WindowAttention(8, 2, (0, 7)), "below 1 token"),
        (lambda: WindowAttention(8, 2, (7, 7), "other"), "'lim', 'lem' or 'none'"),
        (lambda: ScalableAttention(8, 2, 1, 1.25), "without spatial reduction"),
        (lambda: ScalableAttention(8, 4, 2, 1.25), "multiples of num_heads"),
    ],
)
def test_impossible_arguments_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_depthwise_convolutions_stay_in_float32_under_a_cpus_autocast():
    """1 + 2^-10 is no bfloat16 number, so a product in bfloat16 would be 1; the output has the type of the input."""
    layer = DepthwiseConv(2, kernel_size=1)
    torch.nn.init.constant_(layer.weight, 1 + 2**-10)
    torch.nn.init.zeros_(layer.bias)
    x = torch.ones(1, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, half = layer(x), layer(x.bfloat16())
    assert out.dtype == torch.float32 and torch.equal(out, torch.full_like(out, 1 + 2**-10))
    assert half.dtype == torch.bfloat16
    out.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 1 + 2**-10))
    assert torch.equal(layer.weight.grad, torch.full_like(layer.weight, 9.0))
