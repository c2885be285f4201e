"""What the ranks of a run decide together, so that all of them continue in the same way."""

from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar, cast

import torch.distributed as dist

from scalablevit.config.errors import UserError
from scalablevit.text import and_more
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Snapshot

T = TypeVar("T")
MAX_NAMED_FILES = 5
"""Most files that an error names."""


def world_size() -> int:
    """Return the number of ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


def end_with_changed_files(files: Collection[str]) -> NoReturn:
    """End the run on all ranks because files have changed since it began; every rank must call it.

    Args:
        files: changed files that this rank found.

    Raises:
        UserError: always, with the files of all ranks.
    """
    gathered: list[Collection[str]] = [files]
    if world_size() > 1:
        gathered = [[]] * world_size()
        dist.all_gather_object(gathered, list(files))
    names = sorted({name for of_rank in gathered for name in of_rank})
    raise UserError(
        f"{len(names)} files have other contents than when the run began, and its digest names those: "
        f"{', '.join(names[:MAX_NAMED_FILES])}{and_more(len(names), MAX_NAMED_FILES)}",
        where="data",
        fix="put them back and give the same command again (a training resumes); with the changed data it is a new run",
    )


def run_on_all_ranks(action: Callable[[], T]) -> T:
    """Run a step of the set-up that may fail on one rank alone, and raise its UserError on all ranks.

    Otherwise the other ranks would wait for the failed one in their next collective.

    Args:
        action: the step; every rank calls it.

    Returns:
        This rank's result of the step.

    Raises:
        UserError: the first one by rank.
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


def latest_checkpoint_for_all_ranks(
    store: CheckpointStore, rank: int, at_most: int | None = None
) -> tuple[str, Snapshot] | None:
    """Return name and content of the newest whole checkpoint, chosen by rank 0 for all ranks; None: there was none.

    Args:
        store: the run's checkpoints.
        rank: this rank, from 0.
        at_most: the most steps done; None: any. See `CheckpointStore.newest`.

    Raises:
        UserError, OSError: as `CheckpointStore.newest`.
    """
    newest = run_on_all_ranks(lambda: store.newest(at_most) if rank == 0 else None)
    if world_size() == 1:
        return newest
    choice = [newest[0] if newest else None]
    dist.broadcast_object_list(choice, src=0)
    if newest is not None or choice[0] is None:
        return newest
    return choice[0], store.read_patiently(choice[0])
