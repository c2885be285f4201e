"""A trained network, built from its recipe and filled from safetensors: nothing is unpickled, no code is fetched."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.tasks.registry import build_task
from scalablevit.tasks.task import Task

SHOWN = 300
"""Characters of torch's list of what does not fit, which names every tensor."""


@dataclass(frozen=True)
class Trained:
    """A network ready to answer: in evaluation mode, on its device."""

    stage: Stage
    task: Task
    network: nn.Module
    device: torch.device


def load_trained(
    stage: Stage, classes: Sequence[str], weights: str | Path, device: torch.device | None = None
) -> Trained:
    """Build the stage's network and give it all of its weights.

    Args:
        stage: the recipe's stage that it was trained by.
        classes: names, in the order of the network's outputs.
        weights: `weights.safetensors`, whose sum was checked by whoever fetched it.
        device: None: the first GPU, or else the CPU.

    Raises:
        UserError: the weights are of another network.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = build_task(stage, tuple(classes))
    network = task.build_model()
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except RuntimeError as error:
        raise UserError(
            f"the weights do not fit the network: {' '.join(str(error).split())[:SHOWN]}",
            where=str(weights),
            fix="leave out overrides that change the network, such as those of the task's head and channels",
        ) from None
    return Trained(stage, task, network.to(device).eval(), device)
