"""A benchmark in parts: each is measured, printed and written by itself, and one that fails stops no other."""

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, benchmark_options, report

from scalablevit.config.errors import UserError

Measure = Callable[[argparse.Namespace, dict[str, Any]], list[Row]]
"""Takes the options and the result's settings, which it adds to."""


@dataclass(frozen=True)
class Part:
    """What is measured together.

    Attributes:
        name: for `--only`; the result is `build/bench/<benchmark>-<name>-<time>.json`.
        metrics: what it gives, in words.
        minutes: expected on 2 cores.
        quick_minutes: the same with `--quick`.
        measure: does it.
    """

    name: str
    metrics: str
    minutes: float
    quick_minutes: float
    measure: Measure


def part_options(description: str, parts: Sequence[Part]) -> argparse.ArgumentParser:
    """The arguments of a benchmark in parts."""
    parser = benchmark_options(description)
    parser.add_argument("--only", nargs="+", metavar="PART", choices=[part.name for part in parts],
                        default=[part.name for part in parts], help="of %(choices)s")  # fmt: skip
    return parser


def run_parts(benchmark: str, parts: Sequence[Part], options: argparse.Namespace) -> int:
    """Measure the chosen parts one after another; 1 if one of them failed."""
    # `timeout` ends what takes too long: without this nobody would stop the head and the commands
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    chosen = [part for part in parts if part.name in options.only]
    for part in chosen:
        minutes = f"about {expected(part, options):.1f} min on 2 cores"
        print(f"{benchmark} {part.name}: {minutes}: {part.metrics}", flush=True)
    failed = False
    for part in chosen:
        settings: dict[str, Any] = {"quick": options.quick, "expected_minutes": expected(part, options)}
        begun = time.monotonic()
        try:
            rows = part.measure(options, settings)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            rows, failed = [Row(part.metrics, None, None, "", note=str(error).splitlines()[0])], True
        except Exception as error:  # whatever happened: the other parts' metrics are not lost with this one's
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            rows, failed = [Row(part.metrics, None, None, "", note=why)], True
        settings["minutes"] = round((time.monotonic() - begun) / 60, 2)
        report(f"{benchmark}-{part.name}", rows, settings)
    return int(failed)


def expected(part: Part, options: argparse.Namespace) -> float:
    """Minutes that a part should take."""
    return part.quick_minutes if options.quick else part.minutes
