"""Parameter groups, the optimizer, and gradient clipping."""

import math
from collections.abc import Iterable

import timm.optim
import torch
from torch import Tensor, nn

from scalablevit.config.recipe import Optimizer


def build_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer of the model's trainable parameters.

    1-D parameters and those that `model.no_weight_decay()` names have no weight decay. With `layer_decay` every group
    has an `lr_scale` by its distance from the head, by timm's `model.group_matcher()`.

    Args:
        model: the model, on its device.
        recipe: the recipe's section `optimizer`.
    """
    no_decay: Iterable[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if recipe.layer_decay is not None:
        groups = timm.optim.param_groups_layer_decay(
            model, recipe.weight_decay, no_weight_decay_list=tuple(no_decay), layer_decay=recipe.layer_decay
        )
    else:
        groups = timm.optim.param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=tuple(no_decay))
    if recipe.name == "adamw":
        # the meta device, on which memory is estimated, has no fused kernel
        fused = next(model.parameters()).device.type in ("cpu", "cuda") or None
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's `lr_scale` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], clip_norm: float | None) -> Tensor:
    """Clip gradients to a global L2 norm; None: do not clip.

    Returns:
        The norm before clipping, a scalar on the device: only log points read it, since reading waits for the device.
    """
    parameters = list(parameters)
    return nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
