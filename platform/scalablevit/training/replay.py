"""A captured step taken again in one process, to see where it stops being finite."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Length
from scalablevit.config.stored import stored_stage
from scalablevit.run_files import STEP
from scalablevit.tasks.registry import build_task
from scalablevit.training import optim, seeds
from scalablevit.training.capture import batches_file, unpack_batches
from scalablevit.training.loop import TrainContext


@dataclass(frozen=True)
class Replay:
    """What a captured step shows."""

    step: int
    """Steps done before it."""
    ranks: int
    losses: dict[tuple[int, int], float]
    """By rank and micro-batch."""
    gradient_norm: float
    """Of the mean over the global batch."""
    not_finite: list[str]
    """Weights that were not finite before the step; modules in the order in which an output was not; gradients."""


def replay(folder: Path) -> Replay:
    """Take a step again that `training.nonfinite.capture` wrote down: ranks one after the other, without an update.

    Batch statistics are those of each rank's own samples, also where SyncBatchNorm shared them.

    Raises:
        UserError: the folder holds no whole captured step.
    """
    try:
        facts = json.loads((folder / STEP).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        stored = [safetensors.torch.load_file(folder / batches_file(rank)) for rank in range(int(facts["world"]))]
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"holds no whole captured step: {error}",
            where=str(folder),
            fix="name a folder <run>/nonfinite/step_<n>, made with training.nonfinite.capture=true",
        ) from None
    stage = stored_stage(facts["stage"], str(folder / STEP), imports=True)
    task = build_task(stage, tuple(facts["classes"]))
    batches = [unpack_batches(tensors, type(task.collate("train")([]))) for tensors in stored]
    world, state = len(batches), facts["state"]
    position = state["step"] + state["passed_over"]
    model = task.build_model().train()
    model.load_state_dict(weights)
    named = [f"weights before the step: {name}" for name, tensor in weights.items() if not _is_finite(tensor)]
    losses: dict[tuple[int, int], float] = {}
    with _watch_outputs(model) as outputs:
        for rank, micro_batches in enumerate(batches):
            model.load_state_dict(weights)  # batch statistics
            context = TrainContext(stage, Length.of(stage, 1), task, torch.device("cpu"), rank, world)
            torch.manual_seed(seeds.derive(stage.training.seed, position, rank))
            for number, batch in enumerate(micro_batches):
                prepared = task.prepare(batch, "train", (stage.training.seed, position, rank, number))
                with context.autocast():
                    loss, _ = task.loss(model, prepared)
                (loss * (batch.samples / stage.training.global_batch_size)).backward()
                losses[rank, number] = loss.item()
    norm = optim.clip_gradients(model.parameters(), None).item()
    named += [f"output: {name}" for name in outputs]
    named += [f"gradient: {n}" for n, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)]
    return Replay(state["step"], world, losses, norm, named)


def format_finding(found: Replay) -> str:
    """What was found, for people."""
    lines = [f"step {found.step + 1}, {found.ranks} rank(s), gradient norm {found.gradient_norm:.6g}"]
    lines += [f"  rank {rank}, micro-batch {number}: loss {loss:.6g}" for (rank, number), loss in found.losses.items()]
    if found.not_finite:
        lines += ["not finite, in this order:", *(f"  {name}" for name in found.not_finite)]
    elif math.isfinite(found.gradient_norm):
        lines.append("here the step is finite: it was another device, precision or number of threads that made it not")
    return "\n".join(lines)


@contextmanager
def _watch_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules without children whose output is not finite, as they come."""
    named: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in named and not _is_finite(output):
                named.append(name)

        return look

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        yield named
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) if tensor.is_floating_point() else True
