"""What makes the model fast keeps it exact: it equals its plain form, and moves less than the bars of the benchmark."""

import pytest
import timm
import torch
from benchmarks.bench_model import counted_rows
from benchmarks.plain_scalablevit import PlainScalableViT
from torch import nn
from torch.nn import functional

import scalablevit.models  # noqa: F401  registers the variants
from scalablevit.models.attention import attend, attend_by_products
from scalablevit.models.scalablevit import draw_branch_scales

SMALL = {"channels": (16, 32, 64, 128), "depths": (2, 2, 2, 2), "drop_path_rate": 0.0, "num_classes": 5}


def with_values(model: nn.Module) -> nn.Module:
    """Values of every parameter that no symmetry hides: the initial biases are zero."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.05)
    return model


@pytest.mark.parametrize("wide_value", [False, True])
def test_the_model_equals_its_plain_form_with_its_gradients(wide_value: bool) -> None:
    torch.manual_seed(0)
    ours = with_values(timm.create_model("scalablevit_small", wide_value=wide_value, **SMALL).double())
    plain = PlainScalableViT(wide_value=wide_value, **SMALL).double()
    plain.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    logits = [model(images) for model in (ours, plain)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-10)
    for answer in logits:
        answer.square().sum().backward()
    gradients = [dict(model.named_parameters()) for model in (ours, plain)]
    for name, parameter in gradients[0].items():
        torch.testing.assert_close(parameter.grad, gradients[1][name].grad, rtol=1e-9, atol=1e-9, msg=name)


def test_counted_bytes_and_kernels_hold_their_bars() -> None:
    rows = counted_rows()
    assert len(rows) == 4
    assert [row.cells() for row in rows if row.verdict != "met"] == []


@pytest.mark.parametrize("widths", [(5, 4), (4, 4), (2, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_every_way_to_attend_gives_the_same(widths: tuple[int, int], masked: bool) -> None:
    torch.manual_seed(0)
    head_dim, value_dim = widths
    q, k = torch.randn(3, 2, 6, head_dim, dtype=torch.float64), torch.randn(3, 2, 5, head_dim, dtype=torch.float64)
    v = torch.randn(3, 2, 5, value_dim, dtype=torch.float64)
    mask = (torch.arange(5) < torch.tensor([1, 3, 5])[:, None])[:, None, None] if masked else None
    whole = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3), whole)
    torch.testing.assert_close(attend(q, k, v, mask, 0.3, batch_limit=2), whole)
    torch.testing.assert_close(attend_by_products(q, k, v, mask, 0.3), whole)
    half = attend(*(t.bfloat16() for t in (q, k, v)), mask, 0.3)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), whole, rtol=0.05, atol=0.05)


def test_stochastic_depth_keeps_each_branch_at_its_rate_and_its_expectation() -> None:
    torch.manual_seed(0)
    keep = draw_branch_scales([0.0, 0.2, 0.4], torch.empty(4000, 1))
    assert keep.shape == (3, 2, 4000, 1, 1, 1)
    for block, probability in enumerate((1.0, 0.8, 0.6)):
        torch.testing.assert_close(keep[block].unique(), torch.tensor([0.0, 1 / probability])[probability == 1 :])
        assert keep[block].mean().item() == pytest.approx(1, abs=0.03)
    assert not torch.equal(keep[2, 0], keep[2, 1]), "the two branches of a block are left out independently"


def test_a_dropped_branch_leaves_the_map_and_evaluation_drops_nothing() -> None:
    torch.manual_seed(0)
    model = timm.create_model("scalablevit_tiny", drop_path_rate=0.9)
    block, x = model.stages[0][1], torch.randn(2, 7, 7, 24)
    keep = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).view(2, 2, 1, 1, 1)
    out = block(x, keep)
    assert torch.equal(out[1], x[1])
    torch.testing.assert_close(out[0], block(x)[0])
    images = torch.randn(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
