"""Repeats a captured step in one process, to show where values stop being finite."""

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
from scalablevit.models.cpu_linear import is_available, use_library
from scalablevit.run_files import STEP
from scalablevit.tasks.registry import build_task
from scalablevit.training import optim, seeds
from scalablevit.training.callbacks import with_images
from scalablevit.training.capture import batches_file, unpack_batches
from scalablevit.training.loop import TrainContext


@dataclass(frozen=True)
class Replay:
    """The result of a repeated step."""

    step: int
    """Optimizer steps done before it."""
    ranks: int
    """Number of ranks that captured the step."""
    losses: dict[tuple[int, int], float]
    """Loss by rank and index of the micro-batch."""
    gradient_norm: float
    """L2 norm of the gradient of the mean loss over the global batch."""
    not_finite: list[str]
    """What was not finite, as lines such as `gradient: head.weight`: first weights before the step, then outputs of
    modules in the order of the forward pass, then gradients."""


def replay(folder: Path) -> Replay:
    """Repeat a step that `training.nonfinite.capture` stored, on the CPU, one rank after another; nothing is updated.

    The statistics of batch norm are those of each rank's own samples, also where SyncBatchNorm shared them.

    Args:
        folder: `<run>/nonfinite/step_<n>`, n being the steps done before it; `step_<n>_rollback_<k>` after roll-backs.

    Raises:
        UserError: the folder has no complete captured step.
    """
    try:
        facts = json.loads((folder / STEP).read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(folder / "model.safetensors")
        stored = [safetensors.torch.load_file(folder / batches_file(rank)) for rank in range(int(facts["world"]))]
        raw_stage, classes, state = facts["stage"], tuple(facts["classes"]), facts["state"]
        # index of the step in the stream of samples, as `TrainState.position`
        position = state["step"] + state.get("passed_over", 0)
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(
            f"holds no whole captured step: {error}",
            where=str(folder),
            fix="name a folder <run>/nonfinite/step_<n>, made with training.nonfinite.capture=true",
        ) from None
    stage = stored_stage(raw_stage, str(folder / STEP), imports=True)
    task = build_task(stage, classes)
    # an empty batch tells the task's class of batch
    batches = [unpack_batches(tensors, type(task.collate("train")([]))) for tensors in stored]
    world = len(batches)
    model = task.build_model().train()
    model.load_state_dict(weights)
    use_library(model, state.get("cpu_linear", "torch") if is_available() else "torch")
    not_finite = [f"weights before the step: {name}" for name, tensor in weights.items() if not _is_finite(tensor)]
    losses: dict[tuple[int, int], float] = {}
    with _watch_outputs(model) as outputs:
        for rank, micro_batches in enumerate(batches):
            model.load_state_dict(weights)  # each rank begins with the captured running statistics of batch norm
            context = TrainContext(stage, Length.of(stage, 1), task, torch.device("cpu"), rank, world)
            torch.manual_seed(seeds.derive(stage.training.seed, position, rank))
            for index, batch in enumerate(with_images(batch, context) for batch in micro_batches):
                prepared = task.prepare(batch, "train", (stage.training.seed, position, rank, index))
                with context.autocast():
                    loss, _ = task.loss(model, prepared)
                if batch.samples:  # blank images add nothing to the gradient
                    (loss * (batch.samples / stage.training.global_batch_size)).backward()
                losses[rank, index] = loss.item()
    norm = optim.clip_gradients(model.parameters(), None).item()
    not_finite += [f"output: {name}" for name in outputs]
    not_finite += [
        f"gradient: {n}" for n, p in model.named_parameters() if p.grad is not None and not _is_finite(p.grad)
    ]
    return Replay(state["step"], world, losses, norm, not_finite)


def format_replay(result: Replay) -> str:
    """Return the result of a repeated step as lines for people."""
    lines = [f"step {result.step + 1}, {result.ranks} rank(s), gradient norm {result.gradient_norm:.6g}"]
    lines += [f"  rank {rank}, micro-batch {index}: loss {loss:.6g}" for (rank, index), loss in result.losses.items()]
    if result.not_finite:
        lines += ["not finite, in this order:", *(f"  {name}" for name in result.not_finite)]
    elif math.isfinite(result.gradient_norm):
        lines.append("here the step is finite: another device, precision or number of threads made it not finite")
    return "\n".join(lines)


@contextmanager
def _watch_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Yield a list that collects the names of modules without children whose output is not finite, in their order."""
    names: list[str] = []

    def make_hook(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and name not in names and not _is_finite(output):
                names.append(name)

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(make_hook(name)) for name, module in leaves]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all()) if tensor.is_floating_point() else True
