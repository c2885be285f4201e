"""Regional compilation: each repeated block of a backbone is compiled by itself, and equal blocks share the result."""

import socket

import torch
from torch import nn

from scalablevit.config.errors import UserError

RECOMPILE_LIMIT = 64
"""Most compiled forms of one class's forward; torch runs further ones eagerly, with a warning. torch's own limit of 8
is used up by the 8 kinds of blocks (stage, attention) that share ScalableViT's class, before any evaluation."""
BLOCKS_SHARE = 0.25
"""Least fraction of the backbone's parameters in its blocks: modules with fewer are details within blocks, whose
compilation would gain nothing."""


def repeated_blocks(backbone: nn.Module, name: str) -> list[nn.Module]:
    """Return the blocks: the modules of the class that is most frequent in `ModuleList`s and `Sequential`s.

    Classes with less than `BLOCKS_SHARE` of the parameters do not count.

    Args:
        backbone: a classifier or a pyramid.
        name: of its architecture, for the error.

    Raises:
        UserError: there is no such class, or it occurs once.
    """
    lists = (nn.ModuleList, nn.Sequential)
    by_class: dict[type[nn.Module], list[nn.Module]] = {}
    for listed in (child for parent in backbone.modules() if isinstance(parent, lists) for child in parent):
        if any(listed.children()) and not isinstance(listed, lists):
            by_class.setdefault(type(listed), []).append(listed)
    least = BLOCKS_SHARE * _count_parameters([backbone])
    repeated = [modules for modules in by_class.values() if len(modules) > 1 and _count_parameters(modules) >= least]
    if not repeated:
        raise UserError(
            f"{name} has no repeated blocks to compile: no class that occurs more than once in its lists of modules "
            f"holds {BLOCKS_SHARE:.0%} of its parameters",
            where="training.compile",
            fix="set it to false, or to true to compile the whole model",
        )
    return max(repeated, key=len)


def _count_parameters(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def compile_blocks(backbone: nn.Module, name: str, *, one_size: bool) -> None:
    """Let torch compile each block at its first call; the parameters' names and values do not change.

    Args:
        backbone: changed in place; a deep copy of it is not compiled.
        name: of its architecture, for the error.
        one_size: all images have one size. Kernels are then compiled for each shape by itself, so that they do not
            depend on earlier shapes; otherwise the second shape compiles them for all sizes.

    Raises:
        UserError: the backbone has no repeated blocks.
    """
    torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
    for block in repeated_blocks(backbone, name):
        block.compile(dynamic=False if one_size else None)


def try_compiler(device: torch.device) -> None:
    """Check that torch.compile works on a device, by a small function.

    Raises:
        UserError: it fails; torch needs a C++ compiler for a CPU, and a C compiler and Triton for a GPU.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).strip().partition("\n\n")[0].split())
        raise UserError(
            f"torch.compile does not work on {socket.gethostname()}: {reason}",
            where="training.compile",
            fix="install a compiler (g++ and Python's headers) on every node, name it in CXX, or set the key to false",
        ) from error
