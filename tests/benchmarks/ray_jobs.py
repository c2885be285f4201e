"""What Ray costs a training: its steps beside bare torchrun, one worker beside two, the time to its first step, and the
meetings of many workers."""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.commands import local_head, run_beside
from benchmarks.rates import quartiles, ratio, read_rates
from benchmarks.rows import REPOSITORY, Row
from benchmarks.toy_stage import BATCH, recipe, stage_of, write_pictures

from scalablevit.run_files import ATTEMPTS
from scalablevit.training.attempt_events import StartupTimings, read_attempts
from scalablevit.training.pace import pace_of

HERE = Path(__file__).parent
WORKERS = 2
LIMIT_S = 400.0
"""Longest time of one training or start; on a very busy machine a start alone takes minutes."""
JOBS = 3
NOTE_END = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(time.time()))"
"""A job that notes when it ends."""
PARTS = ("driver", "Ray", "imports", "data", "model", "first step")
"""Of a start. The driver: its imports, the recipe's checks, connecting. Ray: from handing over to the worker's code."""

SIZES: tuple[tuple[int, float | None], ...] = ((64, 1.0), (256, None), (1000, None))
"""Numbers of fake workers, and the bar of their row, per cent."""


def step_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Steps through the platform with two workers and with one, and of torchrun, in turn."""
    rounds, steps = (1, 100) if options.quick else (3, 240)
    rates: dict[str, list[float]] = {"torchrun": [], "two workers": [], "one worker": []}
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_pictures(folder / "data")
        for number in range(rounds):
            place = folder / str(number)
            place.mkdir()
            # without a head beside it, which takes some of the processors' time
            rates["torchrun"] += torchrun_rates(recipe(folder / "data", WORKERS, steps), place)
            with local_head(place / "head") as environment:
                for side, workers in (("two workers", WORKERS), ("one worker", 1)):
                    _, run = train_on_ray(recipe(folder / "data", workers, steps), place / f"{workers}", environment,
                                          folder / "mlflow.db")  # fmt: skip
                    rates[side] += read_rates(run)
    settings |= {"rounds": rounds, "recipe": recipe(Path("data"), WORKERS, steps), "images_per_s": quartiles(rates)}
    return step_metrics(rates)


def step_metrics(rates: Mapping[str, Sequence[float]]) -> list[Row]:
    """Both rows, from images a second by side."""
    speed = {side: f"{statistics.median(taken):.0f} images/s" for side, taken in rates.items()}
    return [
        Row("step through Ray Train", 0.98, ratio(rates["two workers"], rates["torchrun"]),
            f"torchrun, gloo, 2 processes: {speed['torchrun']}"),
        Row("1 -> 2 workers, one thread each", 1.85, ratio(rates["two workers"], rates["one worker"]),
            f"one worker: {speed['one worker']}; {BATCH} images a step on each"),
    ]  # fmt: skip


def torchrun_rates(sections: dict[str, Any], folder: Path) -> list[float]:
    """Images a second of the same training without the platform."""
    (folder / "stage.json").write_text(stage_of(sections).model_dump_json())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]
    script = [str(HERE / "bare_ddp.py"), str(folder / "stage.json"), str(folder / "bare.json")]
    run_beside({"torchrun": [*launcher, *script]}, folder, LIMIT_S)
    return list(json.loads((folder / "bare.json").read_text())["rates"])


def train_on_ray(
    sections: dict[str, Any], root: Path, environment: Mapping[str, str], database: Path
) -> tuple[float, Path]:
    """Run the stage's script as a driver on a head; when it began, and the run's folder."""
    root.mkdir()
    (root / "recipe.yaml").write_text(json.dumps(sections))
    command = [sys.executable, str(REPOSITORY / "pipelines" / "pretrain.py"), "--recipe", str(root / "recipe.yaml"),
               "--root", str(root), f"tracking.uri=sqlite:///{database}"]  # fmt: skip
    begun = run_beside({"pretrain": command}, root, LIMIT_S, environment)
    (attempts,) = root.glob(f"runs/*/{ATTEMPTS}")
    return begun, attempts.parent


def start_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Starts of the platform and of an empty loop, in turn on one head; in full the first of each only warms it up."""
    rounds, warm_up = (1, 0) if options.quick else (5, 1)
    ours: list[dict[str, float]] = []
    empty: list[float] = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_pictures(folder / "data", train=128, val=32)
        with local_head(folder / "head") as environment:
            for number in range(warm_up + rounds):
                empty.append(empty_start(folder / f"empty-{number}", environment))
                begun, run = train_on_ray(recipe(folder / "data", WORKERS, steps=2), folder / f"ours-{number}",
                                          environment, folder / "mlflow.db")  # fmt: skip
                ours.append(start_parts(begun, run))
            ends = [seen_end(folder / f"job-{number}", environment) for number in range(JOBS)]
    settings |= {"rounds": rounds, "ours_s": ours, "empty_s": empty, "end_s": ends}
    end = Row("end of a job, until its command line returns", 1.0, statistics.median(ends), "", at_most=True, unit="s")
    return [*start_metrics(ours[warm_up:], empty[warm_up:]), end]


def seen_end(folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds from the end of a job to that of the process that shows its log."""
    folder.mkdir()
    (folder / "environment.yaml").write_text("{}")
    command = [sys.executable, str(REPOSITORY / "infra" / "job.py"), f"raysubmit_{folder.name}", "--runtime-env",
               str(folder / "environment.yaml"), "--", sys.executable, "-c", NOTE_END, str(folder / "end")]  # fmt: skip
    run_beside({"job": command}, folder, LIMIT_S, environment)
    return time.time() - float((folder / "end").read_text())


def empty_start(folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds from starting a driver to the first line of a loop that does nothing."""
    folder.mkdir()
    command = [sys.executable, str(HERE / "empty_loop.py"), str(WORKERS), str(folder), str(folder / "entered.json")]
    begun = run_beside({"empty": command}, folder, LIMIT_S, environment)
    return float(json.loads((folder / "entered.json").read_text())["entered"]) - begun


def start_parts(begun: float, run: Path) -> dict[str, float]:
    """Seconds from starting the driver to the end of the first step, by `PARTS`.

    The driver writes `environment.json` right before it hands over to Ray Train.
    """
    events, _ = read_attempts(run / ATTEMPTS)
    (started,) = [event for event in events if isinstance(event, StartupTimings)]
    handed_over = (run / "environment.json").stat().st_mtime
    names = ("entered", "imported", "opened", "built", "first_step")
    reached = [begun, handed_over, *(getattr(started, name) for name in names)]
    return {part: end - since for part, (since, end) in zip(PARTS, pairwise(reached), strict=True)}


def start_metrics(ours: Sequence[Mapping[str, float]], empty: Sequence[float]) -> list[Row]:
    """The ratio, and a row for each part."""
    whole = statistics.median(sum(parts.values()) for parts in ours)
    nothing = statistics.median(empty)
    rows = [Row("start to first step", 1.5, whole / nothing, f"empty Ray Train loop: {nothing:.1f} s; ours {whole:.1f}",
                at_most=True)]  # fmt: skip
    for part in PARTS:
        seconds = statistics.median(parts[part] for parts in ours)
        rows.append(Row(f"start, of it: {part}", None, seconds, "", unit="s"))
    return rows


def control_rows(options: argparse.Namespace, settings: dict[str, Any]) -> list[Row]:
    """Share of the meetings of many workers, which do nothing else."""
    meetings = 4 if options.quick else 12
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        command = [sys.executable, str(HERE / "fake_workers.py"), str(meetings), str(folder / "times.json"),
                   *(str(world) for world, _ in SIZES)]  # fmt: skip
        with local_head(folder / "head") as environment:
            run_beside({"fake": command}, folder, LIMIT_S, environment)
        times = json.loads((folder / "times.json").read_text())
    settings |= {"meetings": meetings, "held_and_asked_s": times}
    return control_metrics({int(world): taken for world, taken in times.items()})


def control_metrics(times: Mapping[int, Sequence[float]]) -> list[Row]:
    """A row for each size, from the seconds that a meeting holds all workers and that asking each of them takes.

    They meet to report and to look for a notice, so the share is that of any step, such as one of 0.3 s.
    """
    rows = []
    for world, bar in SIZES:
        (held, asked), pace = times[world], pace_of(world)
        share = 100 * held * (1 / pace.report_s + 1 / pace.notice_s)
        note = (f"all are asked in {1000 * asked:.0f} ms every {pace.poll_s:.1f} s, report every "
                f"{pace.report_s:.1f} s, look for a notice every {pace.notice_s:.1f} s")  # fmt: skip
        rows.append(Row(f"control plane, share of a step, {world} workers", bar, share,
                        f"fake workers; a meeting holds them {1000 * held:.0f} ms", True, "%", note))  # fmt: skip
    return rows
