"""Memory that training takes on a device, and what it sends and stores, counted on fake tensors: no GPU, no data."""

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
    """Bytes on each device. Not counted: the CUDA context, the kernels' workspaces, what the allocator wastes."""

    weights: int
    """With buffers such as running averages."""
    gradients: int
    """As many are exchanged in a step."""
    moments: int
    """The optimizer's."""
    average: int
    """The moving average of the weights; 0 without."""
    activations: int
    """Images of a micro-batch and all that outlasts its forward pass for the backward pass. What gradient checkpointing
    computes again is not among them."""

    @property
    def checkpoint(self) -> int:
        """Tensors of a checkpoint."""
        return self.weights + self.moments + self.average

    @property
    def total(self) -> int:
        """At the most: gradients are complete only when the activations are gone."""
        return self.checkpoint + self.gradients + self.activations


def estimate_memory(stage: Stage, task: Task, images: int) -> MemoryEstimate:
    """Count a stage's training by the rules of the devices that its recipe asks for.

    Args:
        images: of a micro-batch on one device.
    """
    with torch.device("meta"):
        model = task.build_model()
    sizes = TrainState(model, build_optimizer(model, stage.optimizer)).bytes_by_file()
    return MemoryEstimate(
        weights=sizes["model"],
        gradients=sum(each.nbytes for each in model.parameters() if each.requires_grad),
        moments=sizes["optimizer"],
        average=0 if stage.training.ema_decay is None else sizes["model"],
        activations=kept_bytes(stage, task, model, images),
    )


def kept_bytes(stage: Stage, task: Task, model: nn.Module, images: int) -> int:
    """Bytes that are held for the backward pass of a micro-batch when its forward pass has ended, without the weights.

    Args:
        model: on the meta device; it is moved onto fake tensors.
    """
    device = torch.device("cuda" if stage.cluster.gpus_per_worker else "cpu")
    costs = task_kind(stage.task.kind).build_costs(stage, task.classes)
    batch = task.prepare(costs.blank_batch(images), "train", (0,))

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    with FakeTensorMode(allow_non_fake_inputs=True), _FusedAttention():
        model.to_empty(device=device).train()
        live = _Live()
        with live:
            batch = map_tensors(batch, like)
            with autocast(device.type) if stage.training.precision == "bfloat16" else nullcontext():
                # the name keeps the graph, and with it what it holds
                loss = costs.countable_loss(model, batch)  # noqa: F841
            return live.held_bytes()


@contextmanager
def autocast(device: str) -> Iterator[None]:
    """As `torch.autocast(device, torch.bfloat16)`, which refuses "cuda" where there is no GPU, for fake tensors."""
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, False)


class _Live(TorchDispatchMode):
    """Knows the memory of all tensors that operators below it have made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        known = _storages((args, kwargs))
        # views and what is changed in place have their memory already
        self._sizes |= {storage: size for storage, size in _storages(result).items() if storage not in known}
        return result

    def held_bytes(self) -> int:
        """Of those that somebody still holds."""
        return sum(size for storage, size in self._sizes.items() if not storage.expired())


def _storages(tree: Any) -> dict[StorageWeakRef, int]:
    """Bytes of the memory behind the tensors of a tree."""
    storages = [each.untyped_storage() for each in tree_leaves(tree) if isinstance(each, Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


class _FusedAttention(TorchFunctionMode):
    """Attention as devices do it: behind fake tensors torch takes its plain form, which keeps all scores."""

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
    """What `scaled_dot_product_attention` comes to on q's device."""
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (each.to(torch.get_autocast_dtype(device)) for each in (q, k, v))
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[-2])
    attended: Tensor
    if device == "cuda":
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention  # noqa: SLF001  # has no other name
        attended, *_ = efficient(q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale)
    elif q.shape[-1] == v.shape[-1] and (attn_mask is None or not attn_mask.requires_grad):
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
        attended, *_ = flash(q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)
    else:
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return attended
