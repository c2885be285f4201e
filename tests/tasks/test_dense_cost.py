from collections.abc import Callable

import pytest

from scalablevit.config.recipe import Stage
from scalablevit.models.counting import Cost
from scalablevit.tasks.dense_cost import PAPER_DETECTION, PAPER_SEGMENTATION, describe_dense_cost
from scalablevit.tasks.detection.costs import DetectorCosts
from scalablevit.tasks.segmentation.costs import SegmentorCosts

ADE20K = tuple(f"class {number}" for number in range(150))
# Parameters in millions as counted from the released backbones; S in both forms of its scalable attention.
COMPUTED = [
    ("scalablevit_small", True, 30.43, 56.48),
    ("scalablevit_small", False, 30.05, 56.10),
    ("scalablevit_base", False, 79.00, 107.05),
    ("scalablevit_large", False, 105.48, 135.52),
]


def _cost(make: Callable[..., Stage], head: str, name: str, wide_value: bool) -> Cost:
    stage = make(
        data={"short_side": 512, "long_side": 2048},
        model={"name": name, "options": {"wide_value": wide_value}},
        task={"head": head, "neck_channels": 256, "head_channels": None},
    )
    return SegmentorCosts(stage, ADE20K).count()


@pytest.mark.parametrize(("name", "wide_value", "semantic_fpn_m", "upernet_m"), COMPUTED)
def test_parameters_and_flops_are_the_papers(
    segmentation_stage: Callable[..., Stage], name: str, wide_value: bool, semantic_fpn_m: float, upernet_m: float
) -> None:
    for head, parameters_m in (("semantic_fpn", semantic_fpn_m), ("upernet", upernet_m)):
        cost = _cost(segmentation_stage, head, name, wide_value)
        assert cost.parameters / 1e6 == pytest.approx(parameters_m, abs=0.05)
        if wide_value or name != "scalablevit_small":
            assert cost.macs / 1e9 == pytest.approx(PAPER_SEGMENTATION[head, name].gflops, rel=0.005)
        assert 1.03 < cost.macs_with_attention / cost.macs < 1.3


def test_the_line_names_the_papers_metrics_only_where_there_are_some() -> None:
    cost = Cost(parameters=30_430_000, macs=174_000_000_000, macs_with_attention=220_000_000_000)
    line = describe_dense_cost("semantic_fpn", "scalablevit_small", cost, (512, 2048))
    assert line.startswith(
        "scalablevit_small with semantic_fpn at 512x2048: 30.43 M parameters, 174 GFLOPs as the paper counts"
    )
    assert line.endswith("220 G with attention; paper, ADE20K at 512x2048: 30.4 M, 174 GFLOPs")
    assert "paper, " not in describe_dense_cost("upernet", "resnet18", cost, (512, 512))


def test_flops_have_three_digits_whatever_their_size() -> None:
    cost = Cost(parameters=1_540_000, macs=87_654_321, macs_with_attention=1_162_400_000_000)
    line = describe_dense_cost("semantic_fpn", "scalablevit_tiny", cost, (96, 96))
    assert "0.0877 GFLOPs as the paper counts" in line and line.endswith("1160 G with attention")


@pytest.mark.parametrize(("head", "name"), list(PAPER_DETECTION))
def test_detectors_cost_what_the_paper_says(detection_stage: Callable[..., Stage], head: str, name: str) -> None:
    """At 800 x 1280 with 80 classes: parameters within 0.05 M, multiply-accumulates within 0.5 %."""
    stage = detection_stage(
        data={"short_side": 800, "long_side": 1333, "instance_masks": True},
        model={"name": name, "options": {"wide_value": name == "scalablevit_small"}},
        task={"kind": "detection", "head": head},
    )
    costs = DetectorCosts(stage, tuple(f"class {number}" for number in range(80)))
    cost, paper = costs.count(), PAPER_DETECTION[head, name]
    assert cost.parameters / 1e6 == pytest.approx(paper.parameters_m, abs=0.05)
    assert cost.macs / 1e9 == pytest.approx(paper.gflops, rel=0.005)
    assert f"at 800x1280: {cost.parameters / 1e6:.2f} M" in costs.describe()
    assert "paper, COCO at 800x1280" in costs.describe()
