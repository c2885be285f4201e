"""What the ranks of a run settle together, so that none goes another way than the others."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from scalablevit.config.errors import UserError
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.evaluate import world_size
from scalablevit.training.state import Snapshot

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
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


def newest_for_all(store: CheckpointStore, rank: int) -> tuple[str, Snapshot] | None:
    """Name and content of the newest valid checkpoint, chosen by rank 0 for all ranks; None for a fresh start."""
    found = together(lambda: store.newest() if rank == 0 else None)
    if world_size() == 1:
        return found
    choice = [found[0] if found else None]
    dist.broadcast_object_list(choice, src=0)
    if found is not None or choice[0] is None:
        return found
    return choice[0], store.read(choice[0])
