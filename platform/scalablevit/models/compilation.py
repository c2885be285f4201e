"""A backbone's repeated blocks, each compiled by itself, in place: those that are alike share one compilation."""

import socket

import torch
from torch import nn

from scalablevit.config.errors import UserError

RECOMPILE_LIMIT = 64
"""Compiled forms of one class's forward; what comes after them torch runs eagerly, with a warning. Its own limit of 8
is used up by the 8 kinds of blocks (stage, attention) that share ScalableViT's class, before anything is evaluated."""
BLOCKS_SHARE = 0.25
"""Of the parameters: what holds fewer is a detail of the blocks, whose compilation would gain nothing."""


def repeated_blocks(backbone: nn.Module, name: str) -> list[nn.Module]:
    """The blocks: the modules of the class that stands most often in lists, of those that hold enough parameters.

    Args:
        backbone: a classifier or a pyramid.
        name: of its architecture, for the error.

    Raises:
        UserError: there is no such class, or it stands there once.
    """
    lists = (nn.ModuleList, nn.Sequential)
    found: dict[type[nn.Module], list[nn.Module]] = {}
    for listed in (each for parent in backbone.modules() if isinstance(parent, lists) for each in parent):
        if any(listed.children()) and not isinstance(listed, lists):
            found.setdefault(type(listed), []).append(listed)
    enough = BLOCKS_SHARE * _parameters([backbone])
    repeated = [modules for modules in found.values() if len(modules) > 1 and _parameters(modules) >= enough]
    if not repeated:
        raise UserError(
            f"{name} has no repeated blocks to compile: no class that occurs more than once in its lists of modules "
            f"holds {BLOCKS_SHARE:.0%} of its parameters",
            where="training.compile",
            fix="set it to false, or to true to compile the whole model",
        )
    return max(repeated, key=len)


def _parameters(modules: list[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def compile_blocks(backbone: nn.Module, name: str, *, one_size: bool) -> None:
    """Have each block compiled at its first call; names, values and copies of the backbone stay as they are.

    Args:
        backbone: changed in place; a deep copy of it is not compiled.
        name: of its architecture, for the error.
        one_size: all images have one size. Kernels are then made for each shape that comes, so that they do not depend
            on which shapes came before; otherwise the second shape makes them for all sizes.

    Raises:
        UserError: it has no repeated blocks.
    """
    torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
    for block in repeated_blocks(backbone, name):
        block.compile(dynamic=False if one_size else None)


def try_compiler(device: torch.device) -> None:
    """Compile something small, as everything later is compiled.

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
