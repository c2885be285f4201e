"""Times of several ways to do the same work, taken in turn, so that what else the machine does falls on all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each call; every round runs each way once, in an order that turns around from round to round.

    Args:
        ways: name -> the work.
        rounds: calls of each that count.
        warm_up: calls of each before them.
        clock: processor time of this process by default, which other processes disturb less than wall time; with more
            than one thread or worker process give `time.perf_counter`.
    """
    for work in list(ways.values()) * warm_up:
        work()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for _ in range(rounds):
        for name in order:
            begun = clock()
            ways[name]()
            seconds[name].append(clock() - begun)
        order.reverse()
    return seconds


def speed_up(seconds: Mapping[str, list[float]], of: str, over: str) -> float:
    """How many times as fast `of` is as `over`: the ratio of their medians."""
    return statistics.median(seconds[over]) / statistics.median(seconds[of])


def spread(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of each way, for the result's settings."""
    names = ("quartile_1_s", "median_s", "quartile_3_s")
    return {way: dict(zip(names, statistics.quantiles(taken), strict=True)) for way, taken in seconds.items()}
