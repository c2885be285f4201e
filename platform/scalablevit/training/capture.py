"""A step that is not finite, written down whole: from its folder it can be taken again."""

import json
from dataclasses import MISSING, fields
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scalablevit.config.stored import to_store
from scalablevit.data.batch import B, Batch, named_tensors
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
    tensors = [(name, tensor.detach().cpu().contiguous()) for name, tensor in named_tensors(batch)]
    return [("samples", torch.tensor(batch.samples)), *tensors]


def unflat(tensors: dict[str, Tensor], kind: type[B]) -> list[B]:
    """Return the micro-batches of one rank, of the task's class of batch, from the file that holds them."""
    batches: dict[int, dict[str, Any]] = {}
    for path, tensor in tensors.items():
        number, name, *place = path.split("/")
        batch = batches.setdefault(int(number), {})
        if place:
            batch.setdefault(name, {})[int(place[0])] = tensor
        else:
            batch[name] = int(tensor) if name == "samples" else tensor
    return [_filled(kind, batches[number]) for number in sorted(batches)]


def _filled(kind: type[B], values: dict[str, Any]) -> B:
    """A batch of stored fields; a field without any stored tensor was a list without a member."""
    for each in fields(kind):
        stored = values.get(each.name)
        if isinstance(stored, dict):
            values[each.name] = [stored[number] for number in sorted(stored)]
        elif stored is None and each.default is MISSING and each.default_factory is MISSING:
            values[each.name] = []
    return kind(**values)
