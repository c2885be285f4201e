"""Bytes that a model moves and kernels that it starts on a GPU, counted on fake tensors: no arithmetic and no GPU.

Every operator that is not a view counts as one kernel, which reads its inputs and writes its outputs once. Copies that
an operator makes inside itself are not seen, nor what caches save.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalablevit.models import attention
from scalablevit.training.memory_estimate import autocast

# Memory without content, and views that their schemas do not name.
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach", "device"}


class Traffic(TorchDispatchMode):
    """What the operators below this mode move.

    Attributes:
        moved_bytes: a dimension that is only expanded counts once, as it is held.
        kernels: how many of each operator.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved_bytes = 0
        self.kernels: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (is_view(func) or func.overloadpacket.__name__ in FREE):
            self.kernels[str(func)] += 1
            self.moved_bytes += sum(map(held_bytes, tree_leaves((args, kwargs, result))))
        return result


def is_view(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def held_bytes(value: object) -> int:
    if not isinstance(value, Tensor) or not value.numel():
        return 0
    held = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
    return torch.Size(held).numel() * value.element_size()


def count_forward(model: nn.Module, shape: tuple[int, ...]) -> Traffic:
    """Inference under bfloat16 autocast, whose rules are CUDA's: weights are cast in every pass, norms are float32.

    Args:
        model: on the meta device.
        shape: of the images.
    """
    traffic = Traffic()
    with fake(), torch.no_grad():
        tensors = fake_parameters(model.eval(), torch.float32, "cuda")
        images = torch.empty(shape, device="cuda")
        with traffic, autocast("cuda"):
            functional_call(model, tensors, (images,))
    return traffic


def count_step(model: nn.Module, shape: tuple[int, ...]) -> Traffic:
    """Forward and backward pass in training mode with everything in bfloat16, without the optimizer.

    The fake tensors are a CPU's: autograd would look for the GPU even behind fake ones.
    """
    traffic = Traffic()
    with fake():
        tensors = fake_parameters(model.train(), torch.bfloat16, "cpu")
        images = torch.empty(shape, dtype=torch.bfloat16)
        labels = torch.empty(shape[0], dtype=torch.long)
        with traffic:
            functional.cross_entropy(functional_call(model, tensors, (images,)), labels).backward()
    return traffic


def fake_parameters(model: nn.Module, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    return {
        name: torch.empty(parameter.shape, dtype=dtype, device=device, requires_grad=True)
        for name, parameter in model.named_parameters()
    }


@contextmanager
def fake() -> Iterator[None]:
    """Fake tensors, and attention as CUDA does it: behind fake tensors torch would take its products and softmax."""

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: None = None, scale: float | None = None) -> Tensor:
        assert mask is None, "224 x 224 needs no padding"
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        return fused(q, k, v, None, torch.is_grad_enabled(), scale=scale)[0]

    with FakeTensorMode(), patch.object(attention, "attend", attend):
        yield
