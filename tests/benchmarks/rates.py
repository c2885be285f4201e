"""Images a second in windows of steps, which all loops that are compared give in the same way."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

WINDOW = 20
"""Steps; the recipes' default interval of logging. The first window is left out: caches and allocators fill in it."""


def platform_rates(lines: Iterable[Mapping[str, Any]]) -> list[float]:
    """Of the platform's records, or the lines of a run's `metrics.jsonl`: the log points after the first window."""
    return [float(line["train/images_per_s"]) for line in lines
            if line["step"] > WINDOW and "train/images_per_s" in line]  # fmt: skip


def read_rates(run: Path) -> list[float]:
    """Of a run's folder."""
    return platform_rates(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as many images a second: the ratio of the medians."""
    return statistics.median(ours) / statistics.median(theirs)


def quartiles(rates: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """First quartile, median and third of each side, for the result's settings."""
    return {side: [round(each, 2) for each in statistics.quantiles(taken)] for side, taken in rates.items()}
