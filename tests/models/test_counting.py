"""Counts against the reference's computed table and the paper."""

import pytest
import timm
import torch
from torch import nn

from scalablevit.models.backbone import build_pyramid
from scalablevit.models.counting import PAPER_CLASSIFICATION, Cost, count_cost, describe_cost

ROWS = [
    ("scalablevit_small", True, 32.38, 4.142, None, 26.17),
    ("scalablevit_small", False, 32.00, 4.093, 4.265, 25.79),
    ("scalablevit_base", False, 81.88, 8.564, 8.801, 74.63),
    ("scalablevit_large", False, 109.29, 14.683, 14.988, 100.99),
]


@pytest.mark.parametrize(("name", "wide", "parameters", "macs", "with_attention", "backbone"), ROWS)
def test_classification_rows(
    name: str, wide: bool, parameters: float, macs: float, with_attention: float | None, backbone: float
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, wide_value=wide)
        pyramid = build_pyramid(name, wide_value=wide)
    cost = count_cost(model, (1, 3, 224, 224))
    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.05)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.005)
    if with_attention is not None:
        assert cost.macs_with_attention / 1e9 == pytest.approx(with_attention, rel=0.005)
    assert sum(p.numel() for p in pyramid.parameters()) / 1e6 == pytest.approx(backbone, abs=0.05)


def test_paper_metrics() -> None:
    for name, wide in (("scalablevit_small", True), ("scalablevit_base", None)):
        with torch.device("meta"):
            cost = count_cost(timm.create_model(name, wide_value=wide), (1, 3, 224, 224))
        paper = PAPER_CLASSIFICATION[name]
        assert cost.parameters / 1e6 == pytest.approx(paper.parameters_m, abs=0.05)
        assert cost.macs / 1e9 == pytest.approx(paper.gflops, rel=0.015)


def test_by_hand_and_without_a_trace() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.linear = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
            tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
            return self.linear(tokens)

    model = Mixer().train()
    model.conv.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = count_cost(model, (2, 3, 4, 4))
    positions = 2 * 16
    linear = positions * (3 * 9 * 8 + 8 * 5)
    assert cost == Cost(3 * 9 * 8 + 8 + 16 + 45, linear, linear + 2 * positions * 16 * 8)
    assert model.training and not model.conv.training and model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_line_shows_the_paper_only_where_it_has_the_model() -> None:
    cost = Cost(32_381_320, 4_142_000_000, 4_320_000_000)
    line = describe_cost("scalablevit_small", cost)
    assert "32.38 M" in line and "4.14 GFLOPs" in line and "4.32 G with attention" in line
    assert "32.4 M, 4.2 GFLOPs" in line
    assert "paper, " not in describe_cost("resnet18", cost)


def test_a_small_model_does_not_cost_nothing() -> None:
    assert "1.37 M parameters, 0.00412 GFLOPs" in describe_cost(
        "scalablevit_tiny", Cost(1_370_000, 4_120_000, 4_500_000)
    )
