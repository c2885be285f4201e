"""Estimates the memory that training takes on a device, on fake tensors: without a GPU and without data."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scalablevit.config.recipe import Stage
from scalablevit.data.batch import map_tensors
from scalablevit.tasks.registry import task_kind
from scalablevit.tasks.task import Task
from scalablevit.training.optim import build_optimizer
from scalablevit.training.state import TrainState


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device. Not counted: the CUDA context, the kernels' workspaces, the allocator's fragmentation."""

    weights: int
    """Bytes of the parameters and of buffers such as running averages."""
    gradients: int
    """Bytes of the gradients; ranks exchange as many in a step."""
    moments: int
    """Bytes of the optimizer's state."""
    average: int
    """Bytes of the moving average of the weights; 0 without one."""
    activations: int
    """Bytes of a micro-batch's images and of all that its forward pass keeps for the backward pass; what gradient
    checkpointing computes again is not among them."""

    @property
    def checkpoint(self) -> int:
        """Return the bytes of a checkpoint's tensors."""
        return self.weights + self.moments + self.average

    @property
    def total(self) -> int:
        """Return the sum, an upper bound: gradients are complete only when the activations are freed."""
        return self.checkpoint + self.gradients + self.activations


def estimate_memory(stage: Stage, task: Task, images: int) -> MemoryEstimate:
    """Return the memory of a stage's training, by the rules of the kind of device that its recipe asks for.

    Args:
        stage: the stage.
        task: the stage's task.
        images: number of images of a micro-batch on one device.
    """
    with torch.device("meta"):
        model = task.build_model()
    sizes = TrainState(model, build_optimizer(model, stage.optimizer)).bytes_by_file()
    return MemoryEstimate(
        weights=sizes["model"],
        gradients=sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad),
        moments=sizes["optimizer"],
        average=0 if stage.training.ema_decay is None else sizes["model"],
        activations=kept_bytes(stage, task, model, images),
    )


def kept_bytes(stage: Stage, task: Task, model: nn.Module, images: int) -> int:
    """Return the bytes that a micro-batch's forward pass keeps for the backward pass, without the weights.

    Args:
        stage: the stage.
        task: the stage's task.
        model: the task's model on the meta device; it is moved onto fake tensors.
        images: number of images of the micro-batch.
    """
    device = torch.device("cuda" if stage.cluster.gpus_per_worker else "cpu")
    costs = task_kind(stage.task.kind).build_costs(stage, task.classes)
    batch = task.prepare(costs.blank_batch(images), "train", (0,))

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    with FakeTensorMode(allow_non_fake_inputs=True), _FusedAttention():
        model.to_empty(device=device).train()
        tracker = _StorageTracker()
        with tracker:
            batch = map_tensors(batch, like)
            with autocast(device.type) if stage.training.precision == "bfloat16" else nullcontext():
                # the variable keeps the graph alive, and with it the kept tensors
                loss = costs.countable_loss(model, batch)  # noqa: F841
            return tracker.live_bytes()


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """Do what `torch.autocast(device, torch.bfloat16)` does; that refuses "cuda" without a GPU."""
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


class _StorageTracker(TorchDispatchMode):
    """Tracks the storages of all tensors that operators create inside its context."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = _storages((args, kwargs))
        # views and in-place results have the storage of an input
        self._sizes |= {storage: size for storage, size in _storages(result).items() if storage not in inputs}
        return result

    def live_bytes(self) -> int:
        """Return the bytes of the storages that are still referenced."""
        return sum(size for storage, size in self._sizes.items() if not storage.expired())


def _storages(tree: Any) -> dict[StorageWeakRef, int]:
    """Return the bytes by storage of the tensors of a nested structure."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


class _FusedAttention(TorchFunctionMode):
    """Makes attention use the device's fused kernel: with fake tensors torch takes the plain form and keeps scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and not kwargs.get("enable_gqa"):
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_off: bool,
) -> Tensor:
    """Do what `scaled_dot_product_attention` does on q's device; q, k, v are (..., tokens, channels)."""
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (q, k, v))
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    attended: Tensor
    if device == "cuda":
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001  # it has no public name
        attended, *_ = efficient(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)
    elif q.shape[-1] == v.shape[-1] and (attn_mask is None or not attn_mask.requires_grad):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
        attended, *_ = flash(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    else:
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return attended
