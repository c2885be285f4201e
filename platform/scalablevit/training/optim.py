"""Parameter groups, the optimizer, and gradient clipping."""

import math
from collections.abc import Iterable

import timm.optim
import torch
from torch import Tensor, nn

from scalablevit.config.recipe import Optimizer


def build_optimizer(model: nn.Module, recipe: Optimizer) -> torch.optim.Optimizer:
    """Optimizer over the model's trainable parameters.

    1-D parameters and those that `model.no_weight_decay()` names are not decayed. With `layer_decay` every group has
    an `lr_scale` by its distance from the head, after `model.group_matcher()`.
    """
    no_decay: Iterable[str] = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()  # type: ignore[operator]
    if recipe.layer_decay is not None:
        groups = timm.optim.param_groups_layer_decay(
            model, recipe.weight_decay, no_weight_decay_list=tuple(no_decay), layer_decay=recipe.layer_decay
        )
    else:
        groups = timm.optim.param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=tuple(no_decay))
    # fused where the parameters live on a GPU; on the CPU the plain loop is the one that resumes bit for bit
    on_gpu = next(model.parameters()).is_cuda
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=on_gpu or None)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def clip_gradients(parameters: Iterable[Tensor], clip_norm: float | None) -> Tensor:
    """Clip to a global norm if one is given.

    Returns:
        The norm before clipping, on the device: reading it is left to the log points.
    """
    parameters = list(parameters)
    return nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
