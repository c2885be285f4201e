"""Parameters and multiply-accumulates of a model at an input size, next to the paper's values."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

# On meta tensors attention decomposes into batched products, which convolutions and linear layers never use.
_ATTENTION_OPERATORS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulates of convolutions and linear layers; the paper calls them FLOPs.
        macs_with_attention: `macs` and the multiply-accumulates of attention's two products.
    """

    parameters: int
    macs: int
    macs_with_attention: int


@dataclass(frozen=True)
class PaperRow:
    """A model in the paper's tables."""

    parameters_m: float
    """Parameters in millions."""
    gflops: float
    """The paper's "FLOPs", which are multiply-accumulates, in units of 10^9."""


# ScalableViT, table of ImageNet-1K results at 224 x 224. S fits with wide_value=True; L's parameter count is the
# paper's own and fits no setting with its FLOPs: the released model has 109.29 M.
PAPER_CLASSIFICATION = {
    "scalablevit_small": PaperRow(32.4, 4.2),
    "scalablevit_base": PaperRow(81.9, 8.6),
    "scalablevit_large": PaperRow(104.9, 14.7),
}


def count_cost(model: nn.Module, input_shape: tuple[int, ...]) -> Cost:
    """Return the cost of one forward pass, counted on meta tensors without arithmetic or memory.

    Args:
        model: any module whose forward takes one tensor; it is not changed.
        input_shape: of that tensor, usually (1, 3, H, W); multiply-accumulates grow with its batch.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            functional_call(model, shapes, (torch.empty(input_shape, device="meta"),))
    finally:
        for module, mode in training.items():
            module.training = mode
    flops = counter.get_flop_counts()["Global"]
    attention = sum(flops.get(operator, 0) for operator in _ATTENTION_OPERATORS)
    total = sum(flops.values())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, (total - attention) // 2, total // 2)


def giga(count: float) -> str:
    """Return a count in units of 10^9 as text with three significant digits: 0.00412, 4.14, 1160."""
    return f"{float(f'{count / 1e9:.3g}'):g}"


def describe_cost(name: str, cost: Cost) -> str:
    """Return one line with a classifier's cost, and the paper's values where the paper has the model.

    Args:
        name: timm's name of the model.
        cost: of one image.
    """
    line = (
        f"{name}: {cost.parameters / 1e6:.2f} M parameters, {giga(cost.macs)} GFLOPs as the paper counts, "
        f"{giga(cost.macs_with_attention)} G with attention"
    )
    row = PAPER_CLASSIFICATION.get(name)
    return line if row is None else f"{line}; paper, ImageNet-1K at 224: {row.parameters_m} M, {row.gflops} GFLOPs"
