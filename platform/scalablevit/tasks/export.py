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
    """A piece of the network that is exported as a model of its own."""

    name: str
    module: nn.Module
    inputs: Tensor
    """Example inputs (N, ...), N at least 2. N is a dynamic dimension of the export; the others are static unless
    `others` has entries."""
    input_name: str
    outputs: tuple[str, ...]
    """Names of the outputs."""
    expected: list[Tensor]
    """The outputs for `inputs`, computed with the task's own normalization."""
    others: tuple[tuple[Tensor, list[Tensor]], ...] = ()
    """Inputs of other counts, heights and widths with their outputs. If there are any, height and width are dynamic."""


class FromPixels(nn.Module):
    """A network preceded by its normalization: takes RGB pixels, float32 (N, 3, H, W), 0 to 255.

    Args:
        network: takes normalized images (N, 3, H, W).
        data: the recipe's data section, for mean and standard deviation.
        finish: called with the network's outputs and the pixels; makes the module's outputs.
    """

    mean: Tensor
    """(3, 1, 1), of pixels from 0 to 255."""
    std: Tensor
    """(3, 1, 1), of pixels from 0 to 255."""

    def __init__(self, network: nn.Module, data: Data, finish: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.network = network
        self.finish = finish
        self.register_buffer("mean", 255 * torch.tensor(data.mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor(data.std)[:, None, None])

    def forward(self, pixels: Tensor) -> Any:
        """Return the outputs for pixels (N, 3, H, W)."""
        return self.finish(self.network((pixels - self.mean) / self.std), pixels)


def keep_outputs(outputs: Any, _pixels: Tensor) -> Any:
    """Return the network's outputs unchanged."""
    return outputs


class Selection(nn.Module):
    """Selects detections from the first part's outputs for one image, given the image's size.

    Its outputs are boxes, scores and labels, and masks where `two_stages` is true.
    """

    first: int
    """Label that the network itself gives to the first class: 1 where 0 is the background, else 0."""
    two_stages: bool
    """Whether the detector has two stages and gives masks."""

    def tracing(self) -> AbstractContextManager[None]:
        """Return the context manager to enter while this module is traced."""
        return nullcontext()


@dataclass(frozen=True)
class Export:
    """How the networks of a kind of task are exported."""

    usual_size: Callable[[Stage], Size]
    """Returns height and width of a stage's images, in pixels."""
    finish: Callable[[Any, Tensor], Any] = keep_outputs
    """Makes the exported outputs from the network's outputs and its input pixels (N, 3, H, W)."""
    parts: Callable[[nn.Module, Data, Tensor, Tensor], list[Part]] | None = None
    """Makes the parts, for images of one size only, from network, data section, pixels (N, 3, H, W) and the same images
    normalized; None: the network is exported as a whole."""
    selection: Callable[[nn.Module, Size, Stage], Selection] | None = None
    """Makes the module, in eval mode, that selects detections from the first part's outputs; None: there is none."""


def flatten_outputs(outputs: Any) -> list[Tensor]:
    """Return the tensors of nested outputs in their order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flatten_outputs(part)]
