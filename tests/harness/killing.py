"""Runs of training jobs on a Ray head whose processes are killed at chosen moments, and what is left of such runs.

A kill is aimed at the worker processes, at the driver or at Ray Train's controller. The moments are drawn as counts of
pictures read and checkpoints begun, which inotify reports while they happen: they mean the same on any machine.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from harness.heads import ROOT, Head, title_of
from scalablevit.run_files import ATTEMPTS, MANIFEST, SENT, START_NOTE
from scalablevit.tracking.outbox import read_lines
from scalablevit.tracking.records import EndRecord, MetricsRecord
from scalablevit.training.attempt_events import Lost, StartupTimings, read_attempts
from scalablevit.training.checkpoint import CheckpointStore

WAIT_S = 1200
"""Longest wait for the next moment or the end of a job: on a very busy machine a start takes minutes."""
SET_UP = "ray::execute."
"""Title of a worker while Ray Train makes it a member of the process group."""
TIMED = ("train/images_per_s", "train/data_wait")
"""Metrics that measure time and may differ."""

Target = Literal["worker", "driver", "controller"]
Phase = Literal["start-up", "step", "save", "evaluation"]
TITLES = {"worker": ("RayTrainWorker", SET_UP), "controller": ("TrainController",)}
"""Ray names a process after the actor in it, or after the call that it is in."""


class Watch:
    """What happens to the files of some folders, in order (Linux: inotify)."""

    OPENED, ARRIVED, CREATED, OVERFLOW = 0x20, 0x80, 0x100, 0x4000

    def __init__(self) -> None:
        self._system = ctypes.CDLL(None, use_errno=True)
        self._file = self._system.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._labels: dict[int, str] = {}

    def add(self, folder: Path, label: str, mask: int) -> None:
        """Report events of a kind in a folder under a label."""
        number = self._system.inotify_add_watch(self._file, os.fsencode(folder), mask)
        if self._file < 0 or number < 0:
            raise OSError(ctypes.get_errno(), "inotify", str(folder))
        self._labels[number] = label

    def events(self, timeout_s: float) -> list[tuple[str, str]]:
        """Label and file name of what has happened since the last call; waits for the first of them."""
        if not select.select([self._file], [], [], timeout_s)[0]:
            return []
        buffer, at, found = os.read(self._file, 1 << 16), 0, []
        while at < len(buffer):
            number, mask, _, length = struct.unpack_from("iIII", buffer, at)
            assert not mask & self.OVERFLOW, "events were lost"
            name = buffer[at + 16 : at + 16 + length].rstrip(b"\0")
            if name:  # else the folder itself
                found.append((self._labels[number], os.fsdecode(name)))
            at += 16 + length
        return found

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)


@dataclass(frozen=True)
class Aim:
    """Whom to kill and when."""

    target: Target
    phase: Phase
    count: int
    """Pictures read in this phase, or checkpoints begun, in the attempt before the kill."""
    delay_s: float
    """From then to the kill."""
    draw: float
    """Which of several processes, from 0 to 1."""


TARGETS: tuple[Target, ...] = ("worker", "worker", "worker", "driver", "driver")
PHASES: tuple[Phase, ...] = ("step", "step", "save", "evaluation", "start-up")


def aims(seed: str, recipe: dict[str, Any], kills: int, targets: Sequence[Target] = TARGETS) -> list[Aim]:
    """Up to five kills of a run, drawn from a seed: phases and targets in random order and proportion."""
    draw = random.Random(seed)
    training = recipe["training"]
    steps = training["steps"] // (kills + 1)  # those that each kill has to itself
    most = {
        "step": steps * training["global_batch_size"],
        "save": steps // training["checkpoint_every"]["steps"],
        "evaluation": recipe["data"]["shapes"]["val_images"],
        "start-up": 1,
    }
    # spreads the kills over what a process does between two pictures, over a checkpoint's files, and over imports
    longest_s = {"step": 0.1, "save": 0.03, "evaluation": 0.02, "start-up": 8.0}
    return [
        Aim(target, phase, draw.randint(1, most[phase]), draw.uniform(0, longest_s[phase]), draw.random())
        for target, phase in zip(draw.sample(targets, kills), draw.sample(PHASES, kills), strict=True)
    ]


@dataclass
class Kill:
    """A kill that was made."""

    aim: Aim
    pid: int
    time: float
    """Seconds since the epoch."""
    phase: Phase
    """What the run was doing, by the files that it touched last."""
    rank: int | None
    """Of a worker that had begun to train."""
    checkpoint: int
    """Step of the newest checkpoint."""
    parts: dict[str, float] = field(default_factory=dict)
    """Seconds to the next step, in parts, by the run's own record; empty where another kill came before it."""

    def __str__(self) -> str:
        took = f", next step after {seconds(self.parts)}" if self.parts else ""
        whom = self.aim.target + ("" if self.rank is None else f" of rank {self.rank}")
        return (f"{whom} in {self.phase} (aimed at {self.aim.phase}) after the checkpoint of step {self.checkpoint}"
                f"{took}")  # fmt: skip


def seconds(parts: dict[str, float]) -> str:
    """The sum, and what it is made of."""
    return f"{sum(parts.values()):.1f} s ({', '.join(f'{name} {part:.1f}' for name, part in parts.items())})"


class Job:
    """A stage's script as a driver process, started as often as it is killed.

    Args:
        head: where it runs.
        recipe: its only stage is named by its script.
        root: the platform's root.
        name: the run's name, when it is known: then the run can be watched.
    """

    def __init__(self, head: Head, recipe: dict[str, Any], root: Path, name: str | None = None) -> None:
        self.head = head
        self.root = root
        self.script = {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}[
            recipe["task"]["kind"]
        ]
        root.mkdir(parents=True)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(json.dumps(recipe))
        self.total = recipe["training"]["steps"]
        self.kills: list[Kill] = []
        self._lost: set[int] = set()
        """Processes that were killed, and workers of their groups: both may be there for a moment longer."""
        self.started: list[float] = []
        self._driver: subprocess.Popen[bytes] | None = None
        self._watch = Watch()
        self._now: Phase = "start-up"
        self._counts = {"step": 0, "save": 0, "evaluation": 0}
        if name is not None:
            self._watch_run(recipe, root / "runs" / name)

    def _watch_run(self, recipe: dict[str, Any], folder: Path) -> None:
        (folder / "checkpoints").mkdir(parents=True)
        self._watch.add(folder, "run", Watch.ARRIVED)
        self._watch.add(folder / "checkpoints", "save", Watch.CREATED)
        for label, split in (("step", "train"), ("evaluation", "val")):
            images = self.head.data / recipe["data"][split]["images"]
            for each in (images, *(path for path in images.iterdir() if path.is_dir())):
                self._watch.add(each, label, Watch.OPENED)

    @property
    def folder(self) -> Path:
        """The run's."""
        (found,) = (path for path in (self.root / "runs").iterdir() if (path / "checkpoints").is_dir())
        return found

    def __enter__(self) -> "Job":
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait(timeout=30)
        self._watch.close()

    def start(self) -> None:
        """The command; the same each time."""
        command = [sys.executable, str(ROOT / "pipelines" / f"{self.script}.py"), "--recipe", str(self.recipe),
                   "--root", str(self.root), f"tracking.uri={self.head.database}"]  # fmt: skip
        environment = self.head.environment()
        self._now = "start-up"
        with (self.root / f"driver-{len(self.started)}.log").open("w") as output:
            self.started.append(time.time())
            self._driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=self.root,
                                            env=environment)  # fmt: skip

    def said(self) -> str:
        """Everything that the drivers printed."""
        return "\n".join(path.read_text() for path in sorted(self.root.glob("driver-*.log")))

    def ended(self, limit_s: float = WAIT_S) -> int:
        """Wait for the driver; its exit code."""
        assert self._driver is not None
        return self._driver.wait(timeout=limit_s)

    def hit(self, aim: Aim, at_the_latest: float = 1.0) -> Kill:
        """Kill as aimed, or sooner when the checkpoints have come that far (fraction of the run's steps)."""
        latest = int(self.total * at_the_latest)
        if aim.phase != "start-up":
            self._until(lambda: self._now != "start-up", "training to begin")
            self._until(lambda: self._counts[aim.phase] >= aim.count or self._newest() >= latest, aim.phase)
        elif aim.target != "driver":
            self._until(lambda: bool(self._living(aim.target)), "a process to kill")
        end = time.monotonic() + aim.delay_s
        self._until(lambda: time.monotonic() >= end or self._newest() >= latest, "the drawn delay")
        living = self._living(aim.target)
        return self._kill(aim, living[int(aim.draw * len(living))])

    def hit_set_up(self) -> Kill:
        """Kill a worker while it is made a member of the process group; where that is missed, of the next group."""
        aim = Aim("worker", "start-up", 1, 0.0, 0.0)
        for _ in range(5):
            self._until(lambda: bool(self._living("worker")), "workers")
            workers = self._living("worker")
            while self._now == "start-up":
                for pid in workers:
                    with contextlib.suppress(OSError):
                        if title_of(pid).startswith(SET_UP):
                            return self._kill(aim, pid)
                self._until(lambda: True, "the set-up")
            self._kill(aim, workers[0])
        raise AssertionError("the set-up of the process group was never seen")

    def _living(self, target: Target) -> list[int]:
        """Process ids of a target that will be there for longer."""
        assert self._driver is not None
        if target == "driver":
            return [self._driver.pid]
        return sorted(self.head.actors(*TITLES[target]) - self._lost)

    def _kill(self, aim: Aim, pid: int) -> Kill:
        assert self._driver is not None
        workers = self._living("worker")
        rank = self.head.ranks().get(pid)
        self._take_in(0)
        kill = Kill(aim, pid, time.time(), self._phase(), rank, self._newest())
        os.kill(pid, signal.SIGKILL)
        self.kills.append(kill)
        self._lost |= {pid, *workers}
        self._now = "start-up"
        if aim.target == "driver":
            self._driver.wait(timeout=30)
            self._until(lambda: not self.head.actors(*TITLES["worker"]).intersection(workers), "the workers to end",
                        of_driver=False)  # fmt: skip
        return kill

    def _until(self, due: Callable[[], bool], what: str, *, of_driver: bool = True) -> None:
        """Wait for a moment; the driver must live on until then."""
        deadline = time.monotonic() + WAIT_S
        while True:
            self._take_in(0.002)
            if due():
                return
            assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}\n{self.said()}"
            assert self._driver is not None
            assert not of_driver or self._driver.poll() is None, f"the driver ended before {what}\n{self.said()}"

    def _take_in(self, timeout_s: float) -> None:
        for label, name in self._watch.events(timeout_s):
            if label == "run":
                # the driver empties the note when it starts; rank 0 fills it when an attempt begins
                if name == START_NOTE and (self.folder / START_NOTE).stat().st_size:
                    self._now = "step"
                    self._counts = dict.fromkeys(self._counts, 0)
            elif self._now != "start-up":
                self._now = "step" if label == "save" else label  # an evaluation ends with a checkpoint
                self._counts[label] += 1

    def _phase(self) -> Phase:
        torn = [path for path in (self.folder / "checkpoints").iterdir() if not (path / MANIFEST).exists()]
        return "save" if torn and self._now != "start-up" else self._now

    def _newest(self) -> int:
        steps = [int(path.parent.name[5:14]) for path in (self.folder / "checkpoints").glob(f"*/{MANIFEST}")]
        return max(steps, default=0)


# --- what is left of a run ---


def sums(job: Job) -> dict[str, str]:
    """`sums_of` a job's run."""
    return sums_of(job.folder)


def sums_of(folder: Path) -> dict[str, str]:
    """SHA-256 over names, types, shapes and bytes of all tensors of the newest checkpoint, by file, with its step."""
    found = CheckpointStore(str(folder)).newest()
    assert found is not None
    digests = {"step": str(found[1].step)}
    for stem, tensors in sorted(found[1].files.items()):
        digest = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.numpy().tobytes())
        digests[stem] = digest.hexdigest()
    return digests


def points(job: Job) -> list[tuple[int, str, float, float]]:
    """Step, name, value and time (seconds since the epoch) of every metric in the outbox that is no measure of time."""
    found = []
    for line in read_lines(job.folder / "outbox"):
        assert line.record is not None, line.raw
        if isinstance(line.record, MetricsRecord):
            found += [(line.record.step, name, float(value), line.record.time_ms / 1000)
                      for name, value in line.record.metrics.items()
                      if name not in TIMED and not name.startswith("system/")]  # fmt: skip
    return found


def ends(job: Job) -> list[str]:
    """How each start of the command ended the run, by the outbox; a killed one is silent."""
    records = [line.record for line in read_lines(job.folder / "outbox")]
    return [record.status for record in records if isinstance(record, EndRecord)]


def mlflow_run(job: Job) -> Any:
    """The run as MLflow has it."""
    import mlflow

    runs = json.loads((job.folder / "outbox" / SENT).read_text())["runs"]
    uid = json.loads((job.folder / "run.json").read_text())["uid"]
    return mlflow.MlflowClient(job.head.database).get_run(runs[uid])


def mlflow_steps(job: Job, run_id: str, name: str) -> list[int]:
    """Steps of all points of a metric in MLflow, in order."""
    import mlflow

    return sorted(point.step for point in mlflow.MlflowClient(job.head.database).get_metric_history(run_id, name))


def measure_recoveries(job: Job) -> None:
    """Fill in how long each kill kept the run from its next step, and with what."""
    for kill, end in zip(job.kills, [*(kill.time for kill in job.kills[1:]), float("inf")], strict=True):
        kill.parts = parts_until_step(job, kill.time, end)


def parts_until_step(job: Job, since: float, end: float = float("inf")) -> dict[str, float]:
    """Seconds from a kill, or the start of a driver, to the first step; empty where none was told before `end`."""
    events, _ = read_attempts(job.folder / ATTEMPTS)
    begun = next((e for e in events if isinstance(e, StartupTimings) and since < e.entered < end), None)
    lost = next((e.time for e in events if isinstance(e, Lost) and e.time is not None and since <= e.time < end), None)
    if begun is None:
        return {}
    found = since if lost is None or lost > begun.entered else lost
    return {
        **({"detect": found - since} if found > since else {}),
        "restart": begun.entered - found,
        "import": begun.imported - begun.entered,
        "load": begun.first_step - begun.imported,
    }
