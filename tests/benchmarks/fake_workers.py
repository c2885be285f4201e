"""What Ray Train's meetings of all workers take at sizes that no single machine trains: workers that do nothing.

    python tests/benchmarks/fake_workers.py <meetings> <file for the times> <number of workers> ...

Runs on the head that RAY_ADDRESS names. Each fake worker is a coroutine in one of a few processes. What it does with
Ray is what a worker does: it meets the others at Ray's own synchronization actor when it reports and when it looks for
a notice, and a controller asks each worker in turn for its report. The calls are Ray's; what is missing is the network.
All processes share the machine's cores, so on a small machine the times are upper limits.
"""

import asyncio
import importlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

PROCESSES = 4


class Host:
    """A process with some of the fake workers."""

    def __init__(self, barrier: Any, ranks: Sequence[int], world: int) -> None:
        self._barrier, self._ranks, self._world = barrier, ranks, world
        self._reports = {rank: asyncio.Queue[dict[str, Any]](1) for rank in ranks}

    async def meet(self, number: int) -> list[float]:
        """Seconds for which a meeting holds each worker; each has something for the controller then."""
        return list(await asyncio.gather(*(self._meet(rank, number) for rank in self._ranks)))

    async def _meet(self, rank: int, number: int) -> float:
        begun = time.perf_counter()
        await self._barrier.broadcast_from_rank_zero.remote(
            world_rank=rank, world_size=self._world, data="x", caller_method_name="report", collective_seq=number
        )
        await self._reports[rank].put({"records": [{"train/loss": 0.5}] if rank == 0 else [], "node": {}})
        return time.perf_counter() - begun

    async def poll(self, rank: int) -> dict[str, Any] | None:
        """The report that waits, as the controller asks for it."""
        queue = self._reports[rank]
        return None if queue.empty() else queue.get_nowait()


def meetings(world: int, rounds: int) -> tuple[float, float]:
    """Seconds for which a meeting of all workers holds them, and of asking each for its report: medians."""
    module = importlib.import_module("ray.train.v2._internal.execution.checkpoint.sync_actor")
    barrier = module.SynchronizationActor.options(max_concurrency=2 * world).remote()
    host: Any = ray.remote(num_cpus=0, max_concurrency=4 * world)(Host)
    hosts = [host.remote(barrier, range(first, world, PROCESSES), world) for first in range(PROCESSES)]
    held, asked = [], []
    for number in range(rounds + 1):
        pending = [each.meet.remote(number) for each in hosts]
        held.append(statistics.mean(second for part in ray.get(pending) for second in part))
        begun = time.perf_counter()
        ray.get([hosts[rank % PROCESSES].poll.remote(rank) for rank in range(world)])
        asked.append(time.perf_counter() - begun)
    for actor in (*hosts, barrier):
        ray.kill(actor)
    return statistics.median(held[1:]), statistics.median(asked[1:])  # the first one warms up


def main() -> int:
    rounds, result, *sizes = sys.argv[1:]
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False, logging_level=logging.ERROR)
    Path(result).write_text(json.dumps({size: meetings(int(size), int(rounds)) for size in sizes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
