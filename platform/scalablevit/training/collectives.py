"""What the ranks of a run settle together, so that none goes another way than the others."""

from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar, cast

import torch.distributed as dist

from scalablevit.config.errors import UserError
from scalablevit.text import and_more
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Snapshot

T = TypeVar("T")
MAX_NAMED_FILES = 5


def world_size() -> int:
    """Ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def end_with_changed_files(files: Collection[str]) -> NoReturn:
    """End the run on all ranks because files have changed under it; every rank calls it.

    Args:
        files: that this rank met.

    Raises:
        UserError: with the names of all ranks.
    """
    gathered: list[Collection[str]] = [files]
    if world_size() > 1:
        gathered = [[]] * world_size()
        dist.all_gather_object(gathered, list(files))
    names = sorted({name for each in gathered for name in each})
    raise UserError(
        f"{len(names)} files have other contents than when the run began, and its digest names those: "
        f"{', '.join(names[:MAX_NAMED_FILES])}{and_more(len(names), MAX_NAMED_FILES)}",
        where="data",
        fix="put them back and give the same command again (a training resumes); with the changed data it is a new run",
    )


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Do a part of the set-up that can fail on one rank alone; its failure is raised on all ranks.

    Without it the others would wait for the failed one in their next collective.
    """
    result: T | None = None
    failure: tuple[str, str, str] | None = None
    try:
        result = action()
    except UserError as error:
        failure = (error.what, error.where, error.fix)
    failures = [failure]
    if world_size() > 1:
        failures = [None] * world_size()
        dist.all_gather_object(failures, failure)
    for what, where, fix in filter(None, failures):
        raise UserError(what, where=where, fix=fix)
    return cast("T", result)


def latest_checkpoint_for_all_ranks(store: CheckpointStore, rank: int) -> tuple[str, Snapshot] | None:
    """Name and content of the newest valid checkpoint, chosen by rank 0 for all ranks; None for a fresh start."""
    found = run_on_all_ranks(lambda: store.newest() if rank == 0 else None)
    if world_size() == 1:
        return found
    choice = [found[0] if found else None]
    dist.broadcast_object_list(choice, src=0)
    if found is not None or choice[0] is None:
        return found
    return choice[0], store.read(choice[0])
