"""How a task's network is exported: as a whole, or in parts."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scalablevit.config.data import Data
from scalablevit.config.recipe import Stage

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Part:
    """A piece of the network that is exported by itself."""

    name: str
    module: nn.Module
    inputs: Tensor
    """Real ones, at least two along the first dimension, which is left open; the others are fixed, or see `others`."""
    input_name: str
    outputs: tuple[str, ...]
    expected: list[Tensor]
    """The outputs by way of the task's own normalization."""
    others: tuple[tuple[Tensor, list[Tensor]], ...] = ()
    """Inputs of other heights, widths and counts with their outputs. If there are some, height and width are open."""


class FromPixels(nn.Module):
    """A network behind its normalization: takes RGB pixels, float32 (N, 3, H, W) from 0 to 255.

    Args:
        network: takes normalized images.
        data: the recipe's data section, for mean and deviation.
        finish: applied to the network's outputs and the pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, data: Data, finish: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.network = network
        self.finish = finish
        self.register_buffer("mean", 255 * torch.tensor(data.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(data.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Any:
        """Pixels (N, 3, H, W) to the outputs."""
        return self.finish(self.network((pixels - self.mean) / self.std), pixels)


def keep_outputs(outputs: Any, _pixels: Tensor) -> Any:
    """Return the outputs as they are."""
    return outputs


class Selection(nn.Module):
    """Takes the first part's outputs for one image, and the image's size; gives boxes, scores and labels."""

    first: int
    """Number of the first class in the network's own labels."""
    two_stages: bool
    """Whether there are masks too."""

    def tracing(self) -> AbstractContextManager[None]:
        """Return what has to be entered while it is traced."""
        return nullcontext()


@dataclass(frozen=True)
class Export:
    """How the networks of a kind of task are exported."""

    usual_size: Callable[[Stage], Size]
    """Height and width of a stage's images."""
    finish: Callable[[Any, Tensor], Any] = keep_outputs
    """Makes the exported outputs from the network's and from the pixels (N, 3, H, W) that it got."""
    parts: Callable[[nn.Module, Data, Tensor, Tensor], list[Part]] | None = None
    """Makes the parts, of one size only, from network, data section, pixels (N, 3, H, W) and the same normalized; None:
    the network is exported as a whole."""
    selection: Callable[[nn.Module, Size, Stage], Selection] | None = None
    """Makes the module that selects detections from the first part's outputs, in evaluation mode; None: nothing is
    selected."""


def flatten_outputs(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested outputs in their order."""
    return [outputs] if isinstance(outputs, Tensor) else [each for part in outputs for each in flatten_outputs(part)]
