"""A step that is not finite, written down whole: from its folder it can be taken again."""

import json
from dataclasses import MISSING, fields

import safetensors.torch
import torch
from torch import Tensor

from scalablevit.config.stored import to_store
from scalablevit.data.batch import AnyBatch, Batch, named_tensors
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
    tensors = {
        f"{number}/{key}": value for number, batch in enumerate(micro_batches) for key, value in _named_tensors(batch)
    }
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


def _named_tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    """A batch's tensors by name, those of lists with their number; what cannot be trained on is left out."""
    tensors = [(name, tensor.detach().cpu().contiguous()) for name, tensor in named_tensors(batch)]
    return [("samples", torch.tensor(batch.samples)), *tensors]


def unpack_batches(tensors: dict[str, Tensor], kind: type[AnyBatch]) -> list[AnyBatch]:
    """Return the micro-batches of one rank, of the task's class of batch, from the file that holds them."""
    batches: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        number, _, name = path.partition("/")
        batches.setdefault(int(number), {})[name] = tensor
    return [_restored(kind, batches[number]) for number in sorted(batches)]


def _restored(kind: type[AnyBatch], tensors: dict[str, Tensor]) -> AnyBatch:
    """A batch of stored tensors; a required field without any was a list without a member."""
    lists: dict[str, dict[int, Tensor]] = {}
    for path, tensor in tensors.items():
        name, is_listed, place = path.partition("/")
        if is_listed:
            lists.setdefault(name, {})[int(place)] = tensor
    values: dict[str, int | Tensor | list[Tensor]] = {"samples": int(tensors["samples"])}
    for each in fields(kind):
        if each.name in lists:
            values[each.name] = [lists[each.name][number] for number in sorted(lists[each.name])]
        elif each.name in tensors and each.name != "samples":
            values[each.name] = tensors[each.name]
        elif each.default is MISSING and each.default_factory is MISSING and each.name != "samples":
            values[each.name] = []
    return kind(**values)  # type: ignore[arg-type]  # fields of a class that is not known here
