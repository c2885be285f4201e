"""Linear layers through oneDNN on a CPU: torch sends float32 products to MKL, which does without AVX-512 on AMD.

The operator is torch's private one; tests/models/test_cpu_linear.py says what breaks when it changes.
"""

import logging
import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from scalablevit.config.recipe import Stage

CpuLinear = Literal["torch", "onednn"]
"""Which library computes the linear layers on a CPU."""
OPERATOR = "_linear_pointwise"
"""In `torch.ops.mkldnn`: a linear layer with an optional function of its outputs, for Inductor's own use."""
ZEN5 = 26
"""AMD's number of the first family of CPUs whose units are 512 bits wide."""

_log = logging.getLogger(__name__)


def is_available() -> bool:
    """Return whether this build of torch has oneDNN and the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, OPERATOR)


def fastest_for(cpuinfo: str) -> CpuLinear:
    """Return the faster library for a CPU: oneDNN on AMD with AVX-512 from Zen 5 on, torch's own choice on all others.

    It is a rule and no timing: one in ten short timings on busy cores is wrong. Zen 4 takes an AVX-512 instruction in
    two halves, and small models were slower there.

    Args:
        cpuinfo: content of /proc/cpuinfo; empty: the CPU is not known.
    """
    fields = dict(re.findall(r"^(vendor_id|cpu family|flags)\s*:\s*(.*)$", cpuinfo, re.MULTILINE))
    family = fields.get("cpu family", "")
    is_zen5 = fields.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= ZEN5
    return "onednn" if is_zen5 and "avx512f" in fields.get("flags", "").split() else "torch"


def evaluated_library(stage: Stage) -> CpuLinear:
    """Return the library with which a trained model was evaluated, as its config says; if it is missing here, torch."""
    if stage.training.cpu_linear == "onednn" and not is_available():
        _log.warning("this torch has no oneDNN, with which the model was evaluated: predictions may differ by rounding")
        return "torch"
    return "onednn" if stage.training.cpu_linear == "onednn" else "torch"


def use_library(model: nn.Module, library: CpuLinear) -> None:
    """Let a library compute the model's linear layers; parameters, their names and the state dict stay as they are."""
    for module in model.modules():
        if library == "onednn" and type(module) is nn.Linear:  # subclasses compute in their own way
            module.__class__ = OneDNNLinear


class OneDNNLinear(nn.Linear):
    """A linear layer whose products oneDNN computes in eager float32 on a CPU; anywhere else it is `nn.Linear`."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not _is_eager_float32(x, self.weight):
            return super().forward(x)
        if torch.is_grad_enabled():
            return _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return]
        return _multiply(x, self.weight, self.bias)


def _is_eager_float32(x: Tensor, weight: Tensor) -> bool:
    """Return whether the operator may take a product: nothing traces, counts, fakes, transforms or casts it."""
    return (
        all(type(t) in (Tensor, nn.Parameter) and t.is_cpu and t.dtype == torch.float32 for t in (x, weight))
        and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001  # torch.func has no public query
    )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the linear layer's output (..., outputs) for x (..., inputs) and weight (outputs, inputs)."""
    product: Tensor = getattr(torch.ops.mkldnn, OPERATOR)(x, weight, bias, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return (
            _multiply(gradients, weight.t()).view(x.shape) if of_x else None,
            _multiply(gradients.t(), rows.t()) if of_weight else None,
            gradients.sum(dim=0) if of_bias else None,
        )
