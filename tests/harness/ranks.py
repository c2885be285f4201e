"""Runs the worker's code on one or more ranks without Ray, and stops it at chosen steps."""

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from scalablevit.config.errors import UserError
from scalablevit.training import loop, worker
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.state import Record, Snapshot
from scalablevit.training.worker_result import WorkerResult

_train_step = loop.train_step
RANK_LIMIT_S = 120.0


class Attempt(NamedTuple):
    """One start of a run; `stop_at`: the step before which it is stopped."""

    worker_config: worker.WorkerConfig
    stop_at: int | None = None
    poison: Mapping[int, tuple[int, str]] | None = None
    """By position in the stream: the rank whose step there is not finite, and how (a name of `POISONS`)."""
    device: str = "cpu"


POISONS: dict[str, Callable[[Tensor], Tensor]] = {
    "loss not a number": lambda loss: loss + torch.nan,  # a constant: the gradient alone would stay finite
    "loss infinite": lambda loss: loss + torch.inf,
    "gradient not a number": lambda loss: _through(loss, torch.nan),
    "gradient infinite": lambda loss: _through(loss, torch.inf),
}


def _through(loss: Tensor, factor: float) -> Tensor:
    """The same loss with its gradient multiplied."""
    same = loss.clone()
    same.register_hook(lambda gradient: gradient * factor)
    return same


class Poisoned:
    """A task whose loss went wrong."""

    def __init__(self, task: Any, kind: str) -> None:
        self._task = task
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, logs = self._task.loss(model, batch)
        return POISONS[self._kind](loss), logs


class Stop(Exception):
    """Stands for a kill: raised inside the loop."""


def run_attempts(attempts: Sequence[Attempt], world: int, folder: Path) -> list[dict[str, Any]]:
    """Make the attempts one after another on `world` ranks; rank 0's result of each, {} when it was stopped.

    One rank runs in this process. More are started once for all attempts; each attempt builds model, optimizer, loader
    and DistributedDataParallel anew.
    """
    if world == 1:
        return [_attempt(0, 1, attempt) for attempt in attempts]
    results = folder / f"results-{world}.json"
    _start_forkserver()
    arguments = (world, _free_port(), list(attempts), str(results))
    mp.start_processes(_rank, args=arguments, nprocs=world, start_method="forkserver")
    return list(json.loads(results.read_text()))


def _start_forkserver() -> None:
    """One server process imports torch and the package, and every rank of the session is forked from it."""
    multiprocessing.set_forkserver_preload(
        ["harness.ranks", *(f"scalablevit.tasks.{task}" for task in ("classification", "segmentation", "detection"))]
    )
    with _paths_in_environment():
        forkserver.ensure_running()


@contextlib.contextmanager
def _paths_in_environment() -> Iterator[None]:
    """The paths that pytest added, for the server: until Python 3.13 it is not told them, and passes over a module to
    preload that it does not find."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def call_on_ranks(calls: Sequence[Callable[[], Any]], folder: Path, method: str = "fork") -> list[Any]:
    """Call one function on each rank of a group, and return their results; a UserError is returned, as text.

    Rank 0 is this process and the others are its forks, which import nothing: for what needs no gradient, which torch
    refuses to a fork, and no hotcoco, whose threads a fork lacks and waits for. With "forkserver" they are forks of a
    fresh process, and the functions can be pickled.
    """
    store = f"file://{folder}/store"
    if method == "forkserver":
        _start_forkserver()
    context: Any = multiprocessing.get_context(method)
    pipes = [context.Pipe(duplex=False) for _ in calls[1:]]
    ranks = [
        context.Process(target=_send_result, args=(send, call, rank, len(calls), store), daemon=True)
        for rank, (call, (_, send)) in enumerate(zip(calls[1:], pipes, strict=True), start=1)
    ]
    for rank, (_, send) in zip(ranks, pipes, strict=True):
        rank.start()
        send.close()  # so that the end of a rank without a result is seen
    results = [_call(calls[0], 0, len(calls), store)]
    for rank, (receive, _) in zip(ranks, pipes, strict=True):
        assert receive.poll(RANK_LIMIT_S), "a rank gives no result"
        results.append(receive.recv())
        rank.join()
    return results


def _send_result(end: Connection, call: Callable[[], Any], rank: int, world: int, store: str) -> None:
    end.send(_call(call, rank, world, store))


def _call(call: Callable[[], Any], rank: int, world: int, store: str) -> Any:
    limit = timedelta(seconds=RANK_LIMIT_S)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=limit)
    try:
        return call()
    except UserError as error:
        return f"UserError: {error}"
    finally:
        dist.destroy_process_group()


def newest(run_folder: str) -> Snapshot:
    """The run's newest checkpoint."""
    found = CheckpointStore(run_folder).newest()
    assert found is not None
    return found[1]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(rank: int, world: int, port: int, attempts: list[Attempt], results: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    outcome = [_attempt(rank, world, attempt) for attempt in attempts]
    if rank == 0:
        Path(results).write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()


def _attempt(rank: int, world: int, attempt: Attempt) -> dict[str, Any]:
    def step_or_stop(plan: Any, model: Any, state: Any, micro: Any) -> Any:
        if state.step == attempt.stop_at:
            raise Stop
        rank, kind = (attempt.poison or {}).get(state.position, (None, ""))
        if rank == plan.rank:
            plan = replace(plan, task=Poisoned(plan.task, kind))
        return _train_step(plan, model, state, micro)

    sent: list[Record] = []

    def send(records: list[Record], node: dict[str, float]) -> None:
        sent.extend(records)

    loop.train_step = step_or_stop
    try:
        result = worker.run(attempt.worker_config, rank, world, torch.device(attempt.device), send)
    except Stop:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":  # a kill would end it; here it must not write into the next attempt
                thread.join()
        dist.barrier() if world > 1 else None
        return {}
    finally:
        loop.train_step = _train_step
    return {**_flat(result), "records": [record.as_dict() for record in sent]}


def _flat(result: WorkerResult) -> dict[str, Any]:
    """A result's plain values by one name each; what is None is left out."""
    values = result.as_dict()
    values |= values.pop("training") or {}
    return {name: value for name, value in values.items() if value is not None}
