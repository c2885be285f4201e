"""Stores a step whose loss or gradient is not finite, so that `training.replay` can repeat it."""

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

_FORMER_FIELDS = {"image": "images", "index": "indices", "label": "labels", "target": "targets", "mask": "masks"}
"""Today's names of a batch's fields, by those in steps that were captured before the fields were renamed."""


def batches_file(rank: int) -> str:
    """Return the name of a rank's file of micro-batches."""
    return f"batches-rank{rank}.safetensors"


def capture_step(run_folder: str, context: TrainContext, state: TrainState, micro_batches: list[Batch]) -> None:
    """Write a step into `<run folder>/nonfinite/step_<n>/`, where n is the number of steps done before it.

    After roll-backs a step of the same number has other samples, and a folder of its own: `step_<n>_rollback_<k>`.
    Every rank writes its micro-batches as they came from the loader; rank 0 also writes the state before the step, and
    what the step's random numbers depend on.

    Args:
        run_folder: the run's folder in run storage, path or address.
        context: what is fixed while this rank trains.
        state: the state before the step.
        micro_batches: this rank's micro-batches of the step.

    Raises:
        OSError: a file cannot be written.
    """
    filesystem, root = open_filesystem(run_folder)
    again = f"_rollback_{state.roll_backs}" if state.roll_backs else ""
    folder = f"{root}/{NONFINITE}/step_{state.step:09d}{again}"
    filesystem.create_dir(folder, recursive=True)
    tensors = {
        f"{index}/{key}": value for index, batch in enumerate(micro_batches) for key, value in _named_tensors(batch)
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
    """Return a batch's tensors by name, those of lists as `name/index`, without undecodable samples."""
    tensors = [(name, tensor.detach().cpu().contiguous()) for name, tensor in named_tensors(batch)]
    return [("samples", torch.tensor(batch.samples)), *tensors]


def unpack_batches(tensors: dict[str, Tensor], kind: type[AnyBatch]) -> list[AnyBatch]:
    """Return the micro-batches of one rank from the tensors of its file.

    Args:
        tensors: content of the file, as `<micro-batch>/<name>` or `<micro-batch>/<name>/<index>`.
        kind: the task's class of batch.
    """
    batches: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        number, _, name = path.partition("/")
        batches.setdefault(int(number), {})[name] = tensor
    return [_build_batch(kind, batches[index]) for index in sorted(batches)]


def _build_batch(kind: type[AnyBatch], tensors: dict[str, Tensor]) -> AnyBatch:
    """Return a batch of stored tensors; a required field without tensors was an empty list."""
    known = {field.name for field in fields(kind)}
    whole: dict[str, Tensor] = {}
    lists: dict[str, dict[int, Tensor]] = {}
    for path, tensor in tensors.items():
        name, is_list, index = path.partition("/")
        name = name if name in known else _FORMER_FIELDS.get(name, name)
        if is_list:
            lists.setdefault(name, {})[int(index)] = tensor
        else:
            whole[name] = tensor
    values: dict[str, int | Tensor | list[Tensor]] = {"samples": int(whole["samples"])}
    for field in fields(kind):
        if field.name in lists:
            values[field.name] = [lists[field.name][position] for position in sorted(lists[field.name])]
        elif field.name in whole and field.name != "samples":
            values[field.name] = whole[field.name]
        elif field.default is MISSING and field.default_factory is MISSING and field.name != "samples":
            values[field.name] = []
    return kind(**values)  # type: ignore[arg-type]  # fields of a class that is not known here
