"""Which library computes a run's linear layers on a CPU: decided once, by rank 0 at the run's first start."""

import socket
from pathlib import Path
from typing import cast, get_args

import torch
import torch.distributed as dist

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.models.cpu_linear import CpuLinear, fastest_for, is_available
from scalablevit.run_files import CPU_LINEAR
from scalablevit.training.collectives import run_on_all_ranks, world_size
from scalablevit.training.state import Snapshot
from scalablevit.training.storage import open_filesystem, put_text, read

CPUINFO = Path("/proc/cpuinfo")


def library_for_all_ranks(
    stage: Stage, restored: Snapshot | None, run_folder: str, rank: int, device: torch.device
) -> CpuLinear:
    """Return the library of the run: as it began, else rank 0's choice, which is then written into the run's folder.

    Args:
        stage: the stage.
        restored: the checkpoint that this attempt starts from; None: the run has none.
        run_folder: the run's folder in run storage: a path or an address.
        rank: this rank, from 0.
        device: this rank's device.

    Raises:
        UserError: the run began with another one than the recipe wants, or a rank does not have it.
    """
    chosen = [run_on_all_ranks(lambda: _stored_or_new(stage, restored, run_folder, device) if rank == 0 else None)]
    if world_size() > 1:
        dist.broadcast_object_list(chosen, src=0)
    library = cast(CpuLinear, chosen[0])
    run_on_all_ranks(lambda: _check_available(library, device))
    return library


def choose_library(stage: Stage, device: torch.device) -> CpuLinear:
    """Return the library with which a stage would begin on this machine; only eager float32 on a CPU has a choice."""
    training = stage.training
    if device.type != "cpu" or training.precision != "float32" or training.compile:
        return "torch"
    if training.cpu_linear != "auto":
        return training.cpu_linear
    try:
        cpuinfo = CPUINFO.read_text(encoding="utf-8")
    except (OSError, ValueError):  # no Linux
        return "torch"
    return fastest_for(cpuinfo) if is_available() else "torch"


def _stored_or_new(stage: Stage, restored: Snapshot | None, run_folder: str, device: torch.device) -> CpuLinear:
    """Return the library that checkpoint or folder name, or a new choice.

    Checkpoints come first: that of another trial may be what a trial goes on from. Those of earlier versions name none.
    """
    filesystem, root = open_filesystem(run_folder)
    if restored is None:
        stored = (read(filesystem, f"{root}/{CPU_LINEAR}") or b"").decode().strip()
    else:
        stored = restored.meta.get("cpu_linear", "torch")
    if not stored:
        library = choose_library(stage, device)
        put_text(run_folder, CPU_LINEAR, f"{library}\n")
        return library
    if stored not in get_args(CpuLinear):
        raise UserError(
            f"is none of {', '.join(get_args(CpuLinear))}, got {stored[:40]!r}",
            where=f"{run_folder}/{CPU_LINEAR}",
            fix="restore the file from a copy, or remove it where the run has no checkpoint yet",
        )
    if stage.training.cpu_linear not in ("auto", stored):
        raise UserError(
            f"this run began with {stored}, and rounds otherwise with {stage.training.cpu_linear}",
            where="training.cpu_linear",
            fix=f"leave the key out or write {stored}; or move the run's folder away to train from the start",
        )
    return cast(CpuLinear, stored)


def _check_available(library: CpuLinear, device: torch.device) -> None:
    if library == "onednn" and device.type == "cpu" and not is_available():
        raise UserError(
            f"torch {torch.__version__} on {socket.gethostname()} has no oneDNN, with which this run computes",
            where="training.cpu_linear",
            fix="install the same build of torch on every node; or write torch and train from the start",
        )
