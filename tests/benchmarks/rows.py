"""What every benchmark gives: rows of bar, measured and baseline, printed and written with the full configuration.

    python tests/benchmarks/rows.py

prints the newest result of each benchmark below build/bench once more.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "build" / "bench"
DATA = Path(os.environ.get("SCALABLEVIT_DATA") or REPOSITORY.parent / "shared" / "data")
"""Folder of real data, as `make bench DATA=<folder>` names it."""


@dataclass(frozen=True)
class Row:
    """One metric of a benchmark.

    Attributes:
        name: of the metric.
        bar: what it is held against; None for a metric that is only reported.
        measured: None if it was not run.
        baseline: what is compared with what, in words.
        at_most: the bar is an upper limit, not a lower one.
        unit: `x` for a ratio.
        note: why it was not run, or what stands in the way of the bar.
    """

    name: str
    bar: float | None
    measured: float | None
    baseline: str
    at_most: bool = False
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        """Met, missed, not run, or nothing where there is no bar."""
        if self.measured is None:
            return "not run"
        if self.bar is None:
            return ""
        met = self.measured <= self.bar if self.at_most else self.measured >= self.bar
        return "met" if met else "missed"

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        sign = "<=" if self.at_most else ">="
        bar = "" if self.bar is None else f"{sign} {self.bar:.2f} {self.unit}"
        measured = "" if self.measured is None else f"{self.measured:.3g} {self.unit}"
        verdict = f"{self.verdict}: {self.note}" if self.verdict and self.note else self.verdict or self.note
        return self.name, bar, measured, verdict, self.baseline


HEADINGS = ("metric", "bar", "measured", "", "baseline")


def benchmark_options(description: str) -> argparse.ArgumentParser:
    """The arguments that `make bench` and `make bench-quick` give to each benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: minutes in all, with more noise")
    return parser


def report(benchmark: str, rows: Sequence[Row], settings: dict[str, Any]) -> Path:
    """Print the rows and write them with everything that they depend on.

    Args:
        benchmark: name of the file: `build/bench/<benchmark>-<UTC time>.json`.
        settings: sizes, repetitions, clock, spread of the times: whatever this benchmark alone knows.

    Returns:
        the file written.
    """
    now = datetime.now(UTC)
    content = {
        "benchmark": benchmark,
        "date": now.isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": _git("status", "--porcelain").splitlines(),
        "command": sys.argv,
        "machine": _machine(),
        "threads": {"torch": torch.get_num_threads(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"python": platform.python_version(), **{each.name: each.version for each in distributions()}},
        "settings": settings,
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{benchmark}-{now:%Y%m%dT%H%M%SZ}.json"
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print_table(rows)
    print(f"written to {path}")
    return path


def print_table(rows: Sequence[Row]) -> None:
    """Columns as wide as their longest cell."""
    table = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return result.stdout.rstrip() if result.returncode == 0 else ""


def _machine() -> dict[str, Any]:
    """Processor, memory and GPU, and how busy the machine was."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "load_average": os.getloadavg(),
    }


def main() -> int:
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        content = json.loads(path.read_text())
        newest[content["benchmark"]] = content
    for benchmark, content in newest.items():
        machine = content["machine"]
        print(f"\n{benchmark}, {content['date']}, commit {content['commit'][:7]}, {machine['processor']}, "
              f"{machine['cores']} cores, GPU: {machine['gpu'] or 'none'}")  # fmt: skip
        for row in content["rows"]:
            row.pop("verdict")
        print_table([Row(**row) for row in content["rows"]])
    return 0 if newest else 1


if __name__ == "__main__":
    sys.exit(main())
