"""Saves a checkpoint again and again, killed at each file operation in turn, then with ever larger files allowed.

`main(FOLDER)`: FOLDER/before holds the run that each save starts from; FOLDER/killed_<n> and FOLDER/full_<n> are what
is left of it. Torch is imported once: each save is a fork of this process.
"""

import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch

from scalablevit.config.recipe import Keep
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.state import Snapshot

STEMS = ("model", "optimizer", "ema")
TIME_DIGITS = 8
"""A manifest holds the time of its writing, whose last digits may be missing: so much shorter can the next one be."""

WRITES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audited operations that change a folder (`open` for writing)."""


def snapshot(step: int, attempt: int = 0) -> Snapshot:
    """Toy state that differs from step to step and from attempt to attempt."""
    generator = torch.Generator().manual_seed(1000 * attempt + step)
    files = {stem: {"w": torch.randn(16, 3, generator=generator), "n": torch.tensor(step)} for stem in STEMS}
    return Snapshot(step, files, {"step": step, "attempt": attempt, "history": [0.5] * step})


class Killer:
    """Kills this process before the operation with a given number."""

    def __init__(self, last: int) -> None:
        self.left = last
        self.inside = False

    def operation(self) -> None:
        """Count one."""
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What the interpreter itself reports: nothing that changes a file passes by uncounted."""
        if event in WRITES and (event != "open" or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            self.operation()


class TornFile:
    """A file whose writing takes two operations, so that a kill can come in the middle."""

    def __init__(self, file: Any, killer: Killer) -> None:
        self.file = file
        self.killer = killer

    def __enter__(self) -> "TornFile":
        return self

    def __exit__(self, *_error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, content: bytes) -> int:
        """Half of it, then the rest."""
        for part in (content[: len(content) // 2], content[len(content) // 2 :]):
            self.killer.operation()
            self.file.write(part)
            self.file.flush()
        return len(content)


class TracedFileSystem(pyarrow.fs.LocalFileSystem):  # type: ignore[misc]  # untyped
    """Folders are made and removed by pyarrow, which the interpreter does not see."""

    killer: Killer

    def create_dir(self, *arguments: Any, **options: Any) -> None:
        self.killer.operation()
        super().create_dir(*arguments, **options)

    def delete_file(self, *arguments: Any) -> None:
        self.killer.operation()
        super().delete_file(*arguments)

    def delete_dir(self, path: str) -> None:
        """A file at a time, as the system does it."""
        for file in sorted(Path(path).iterdir()):
            self.killer.operation()
            super().delete_file(str(file))
        self.killer.operation()
        super().delete_dir(path)


def traced_save(run: Path, last: int) -> None:
    """Save step 9 and prune the rest, killed at operation `last`; a number beyond the last one kills nothing."""
    killer = Killer(last)
    store = CheckpointStore(str(run))
    store.filesystem = TracedFileSystem()
    TracedFileSystem.killer = killer
    path_open, fsync = Path.open, os.fsync

    def traced_open(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        file = path_open(self, mode, *arguments, **options)
        return TornFile(file, killer) if set(mode) & set("wxa") else file

    def traced_fsync(number: int) -> None:
        killer.operation()
        fsync(number)

    made = snapshot(9)
    sys.addaudithook(killer.audit)
    Path.open, os.fsync = traced_open, traced_fsync  # type: ignore[method-assign, assignment]
    store.write(made, 0.9)
    store.prune(Keep(last=1, best=1))


def limited_save(run: Path, largest: int) -> None:
    """Save step 9 where no file can grow beyond `largest` bytes, in the thread that saves in training."""
    store = CheckpointStore(str(run))
    writer = BackgroundWriter(store, Keep(last=1, best=1))
    made = snapshot(9)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
    writer.submit(made, 0.9)
    writer.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (run / "failed.txt").write_text(str(writer.failed))


def forked(work: Any, *arguments: Any) -> int:
    """The wait status of a fork that does some work."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(root: Path) -> None:
    """Kill at every operation until a save ends by itself; then fill the disk at every size."""
    for number in range(1000):
        run = root / f"killed_{number:03}"
        shutil.copytree(root / "before", run)
        status = forked(traced_save, run, number)
        if status == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"operation {number}: {status}"
    print(f"killed at each of {number} operations")
    largest = max(file.stat().st_size for file in (root / "before").rglob("*") if file.is_file())
    for size in range(0, largest - TIME_DIGITS, max(1, largest // 10)):
        run = root / f"full_{size:06}"
        shutil.copytree(root / "before", run)
        assert forked(limited_save, run, size) == 0
