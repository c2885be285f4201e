"""A step that is not finite, written down whole: from its folder it can be taken again."""

import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scalablevit.config.stored import to_store
from scalablevit.data.loader import Batch
from scalablevit.run_files import NONFINITE, STEP
from scalablevit.training.loop import TrainContext
from scalablevit.training.state import TrainState
from scalablevit.training.storage import open_filesystem, put


def batches_file(rank: int) -> str:
    """Name of a rank's file of micro-batches."""
    return f"batches-rank{rank}.safetensors"


def capture_step(run_folder: str, context: TrainContext, state: TrainState, micro_batches: list[Batch]) -> None:
    """Write a step into `<run folder>/nonfinite/step_<n>/`: n steps were done before it.

    Every rank writes its micro-batches as they came from the loader; rank 0 also the state before the step, and what
    the step's random numbers are functions of.

    Args:
        run_folder: path or address.
        context: what is trained.
        state: as it was before the step.
        micro_batches: of this rank.
    """
    filesystem, root = open_filesystem(run_folder)
    folder = f"{root}/{NONFINITE}/step_{state.step:09d}"
    filesystem.create_dir(folder, recursive=True)
    tensors = {f"{number}/{key}": value for number, batch in enumerate(micro_batches) for key, value in _flat(batch)}
    put(filesystem, f"{folder}/{batches_file(context.rank)}", safetensors.torch.save(tensors))
    if context.rank == 0:
        snapshot = state.snapshot()
        for stem, content in snapshot.files.items():
            put(filesystem, f"{folder}/{stem}.safetensors", safetensors.torch.save(content))
        facts = {
            "stage": to_store(context.stage),
            "classes": context.task.classes,
            "world": context.world,
            "state": snapshot.meta,
        }
        put(filesystem, f"{folder}/{STEP}", json.dumps(facts, indent=1).encode())


def _flat(batch: Batch) -> list[tuple[str, Tensor]]:
    """A batch's tensors by name, those of lists with their number; what cannot be trained on is left out."""
    found: list[tuple[str, Tensor]] = [("samples", torch.tensor(batch["samples"]))]
    for name, value in batch.items():
        if isinstance(value, Tensor):
            found.append((name, value.detach().cpu().contiguous()))
        elif isinstance(value, list) and name not in ("bad", "changed"):
            found += [(f"{name}/{number}", each.detach().cpu().contiguous()) for number, each in enumerate(value)]
    return found


def unflat(tensors: dict[str, Tensor]) -> list[Batch]:
    """The micro-batches of one rank, from the file that holds them."""
    batches: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        number, name, *place = path.split("/")
        batch = batches.setdefault(int(number), {"bad": [], "changed": []})
        if place:
            batch.setdefault(name, {})[int(place[0])] = tensor
        else:
            batch[name] = int(tensor) if name == "samples" else tensor
    return [{name: _as_lists(value) for name, value in batches[number].items()} for number in sorted(batches)]


def _as_lists(value: Any) -> Any:
    return [value[number] for number in sorted(value)] if isinstance(value, dict) else value
