"""The outbox: every record meant for MLflow, appended to one file on local disk; the source of truth."""

import errno
import fcntl
import json
import math
import operator
import os
import shutil
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Literal, TypedDict

from scalablevit.config.packages import content_sum, package_files
from scalablevit.tracking import tags as tag_names
from scalablevit.tracking.environment import code_digest, code_files

RECORDS = "records.jsonl"
FOLDER, FORMER_FOLDER = "outbox", "spool"
"""In a run's folder; runs of releases before 0.2 have the former one."""
FORMAT = 1
TAIL_BLOCK = 1 << 16
MAX_STEP = 2**63 - 1

Status = Literal["FINISHED", "FAILED", "KILLED"]


class MetricRecord(TypedDict):
    """Values of one step, as a worker reports them."""

    step: int
    """Optimizer step, from 0."""
    time_ms: int
    """When they were measured, milliseconds since the epoch. Part of a point's identity in MLflow."""
    metrics: Mapping[str, float]
    """Value by name; NaN and infinities are kept."""


@dataclass(frozen=True)
class Line:
    """One complete line of the file."""

    record: dict[str, Any] | None
    """The record, or None where the line is not one (a damaged disk, a later format)."""
    raw: bytes
    end: int
    """Byte offset just after it: where reading goes on."""


def outbox_of(run: Path) -> Path:
    """Return the outbox's folder in a run's folder; one that an earlier release began stays where it is."""
    former = run / FORMER_FOLDER
    return former if former.is_dir() else run / FOLDER


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def read_lines(folder: Path, offset: int = 0) -> Iterator[Line]:
    """Complete lines from a byte offset on; needs no lock, since a line that still lacks its end is left out."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            yield Line(_parse(raw), raw, offset)


def count_lines(folder: Path, offset: int) -> int:
    """Return the complete lines after a byte offset."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def open_runs(folder: Path) -> dict[str, int]:
    """Runs that were begun and not ended: uid -> time of their latest record, milliseconds since the epoch."""
    last: dict[str, int] = {}
    for line in read_lines(folder):
        if line.record is None:
            continue
        uid = line.record["uid"]
        if line.record["kind"] == "run" or uid in last:
            last[uid] = max(line.record["time_ms"], last.get(uid, 0))
        if line.record["kind"] == "end":
            last.pop(uid, None)
    return last


def _parse(raw: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(raw)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("v") != FORMAT:
        return None
    types = {"kind": str, "uid": str, "time_ms": int}
    if record.get("kind") == "metrics":
        types |= {"step": int, "metrics": dict}
    return record if all(isinstance(record.get(field), kind) for field, kind in types.items()) else None


def _step(value: int) -> int:
    step = operator.index(value)
    if not 0 <= step <= MAX_STEP:
        raise ValueError(f"step {step} is not within 0..{MAX_STEP}")
    return step


def _jsonable(value: float) -> float | str:
    """JSON has no NaN nor infinities: they become the strings that `float()` reads back."""
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class Outbox:
    """Appends records; several processes and threads may do so at once.

    Every record is one JSON line with `v` (format), `kind`, `uid` (the run: uuid4 hex, made by us and kept with the
    run, so that a restart continues the same MLflow run) and `time_ms`; the methods name the other fields. A process
    killed while it writes leaves at most one torn line, which the next writer cuts off.

    Args:
        folder: made if missing; on a local disk that outlives the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.folder / RECORDS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._mutex = threading.Lock()
        # Steps already recorded by (uid, key), in ascending order, from the part of the file before `_read_to`.
        self._steps: dict[tuple[str, str], array[int]] = {}
        self._read_to = 0
        with self._exclusively():
            # A new file is on the disk only when its folder's entry is.
            directory = os.open(self.folder, os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def run(
        self,
        uid: str,
        name: str,
        *,
        experiment: str,
        parent: str | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """A run starts, or goes on after a restart: `name`, `experiment`, `parent` (uid, same experiment), `tags`."""
        fields = {"name": name, "experiment": experiment, "parent": parent, "tags": _strings(tags or {})}
        self._append("run", uid, fields)

    def params(self, uid: str, params: Mapping[str, object]) -> None:
        """What the run was asked to do: `params`. MLflow never changes one; a second value is refused there."""
        self._append("params", uid, {"params": _strings(params)})

    def tags(self, uid: str, tags: Mapping[str, object]) -> None:
        """Facts that may change: `tags`; the last value wins."""
        self._append("tags", uid, {"tags": _strings(tags)})

    def artifact(self, uid: str, path: Path, artifact_path: str | None = None) -> None:
        """A file or folder to copy: `path` (must stay until sent), `artifact_path` (folder in the run's artifacts)."""
        self._append("artifact", uid, {"path": str(Path(path).resolve()), "artifact_path": artifact_path})

    def dataset(self, uid: str, *, name: str, digest: str, source: str, context: str) -> None:
        """Data the run reads: `name`, `digest`, `source` (path or address), `context` (such as training)."""
        self._append("dataset", uid, {"name": name, "digest": digest, "source": source, "context": context})

    def model(
        self,
        uid: str,
        *,
        name: str,
        folder: Path,
        package: Path,
        serving: str,
        requirements: Sequence[str],
        tags: Mapping[str, object],
        alias: str = "candidate",
        user_packages: Sequence[Path] = (),
    ) -> None:
        """A model to register; the package is copied into the outbox, since a job's copy of it vanishes with the job.

        The record's fields: `registration`, `name`, `folder`, `code` (the copy, relative to the outbox), `serving`,
        `requirements`, `tags`, `alias`, and `user_code` (copies, as `code`) where there is any. `registration` is a
        function of run, name and weights, so a restart that records the same model again registers no second version.

        Args:
            name: registered model's name.
            folder: holds `weights.safetensors` and `config.json`; must stay until sent.
            package: folder of the import package that the model's code needs.
            serving: file inside `package` that calls `mlflow.models.set_model`, relative path.
            requirements: `name==version` lines.
            tags: lineage, by the names of `tracking.tags`; hashes and run uid are added here.
            user_packages: folders of users' packages that the model's code imports besides; copied likewise.
        """
        package = Path(package).resolve()
        sums = {file: _sha256(folder / file) for file in ("weights.safetensors", "config.json")}
        code = self._keep_code(package, code_digest(package), code_files(package))
        registration = sha256(f"{uid}\0{name}\0{sums['weights.safetensors']}".encode()).hexdigest()[:32]
        lineage = {
            **tags,
            tag_names.UID: registration,
            tag_names.RUN_UID: uid,
            tag_names.WEIGHTS_SHA256: sums["weights.safetensors"],
            tag_names.CONFIG_SHA256: sums["config.json"],
            tag_names.CODE_DIGEST: code.parent.name,
        }
        fields = {
            "registration": registration,
            "name": name,
            "folder": str(Path(folder).resolve()),
            "code": code.relative_to(self.folder).as_posix(),
            "serving": serving,
            "requirements": list(requirements),
            "tags": _strings(lineage),
            "alias": alias,
        }
        if user_packages:
            copies = [self._keep_code(each, content_sum(each), package_files(each)) for each in user_packages]
            fields["user_code"] = [copy.relative_to(self.folder).as_posix() for copy in copies]
        self._append("model", uid, fields)

    def end(self, uid: str, status: Status, *, time_ms: int | None = None) -> None:
        """The run is over: `status`; `time_ms` is when (now, unless given)."""
        self._append("end", uid, {"status": status}, time_ms)

    def metrics(self, uid: str, records: Iterable[MetricRecord]) -> int:
        """Values by step: `step`, `metrics` (name: number, or "NaN", "Infinity", "-Infinity").

        A point whose (uid, name, step) is already in the file is dropped: after a restart steps are reported again,
        and the first report stands. Nothing is written unless all records are sound.

        Returns:
            Points kept.

        Raises:
            KeyError, TypeError, ValueError: a record has not the form of `MetricRecord`.
            OSError: the disk did not take them; they may be given again.
        """
        sound = [
            (
                _step(record["step"]),
                operator.index(record["time_ms"]),
                {str(key): _jsonable(value) for key, value in record["metrics"].items()},
            )
            for record in records
        ]
        with self._exclusively():
            self._catch_up()
            batch: set[tuple[str, int]] = set()
            lines = []
            for step, time_ms, values in sound:
                fresh = {key: value for key, value in values.items() if not self._has(uid, key, step, batch)}
                batch.update((key, step) for key in fresh)
                if fresh:
                    lines.append(_line("metrics", uid, {"step": step, "metrics": fresh}, time_ms))
            self._write(b"".join(lines))
            self._catch_up()
        return len(batch)

    def sync(self) -> None:
        """Wait until all that was appended is on the disk itself, safe from a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and give the file back."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _append(self, kind: str, uid: str, fields: Mapping[str, Any], time_ms: int | None = None) -> None:
        with self._exclusively():
            self._write(_line(kind, uid, fields, now_ms() if time_ms is None else time_ms))
        self.sync()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """One writer at a time, threads by the mutex and processes by the lock; starts at the end of a whole line."""
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._cut_torn_line()
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _cut_torn_line(self) -> None:
        """Nobody else writes while we hold the lock: an unfinished last line belongs to a process that died."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - TAIL_BLOCK)
            newline = os.pread(self._file, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            os.ftruncate(self._file, end)

    def _write(self, lines: bytes) -> None:
        if not lines:
            return
        size = os.fstat(self._file).st_size
        written = os.write(self._file, lines)
        if written < len(lines):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, "the disk is full; nothing was written", str(self.folder / RECORDS))

    def _catch_up(self) -> None:
        """Learn the points that were appended since the last look, by whichever process."""
        for line in read_lines(self.folder, self._read_to):
            self._read_to = line.end
            if line.record is None or line.record["kind"] != "metrics":
                continue
            for key in line.record["metrics"]:
                steps = self._steps.setdefault((line.record["uid"], key), array("q"))
                place = bisect_left(steps, line.record["step"])
                if place == len(steps) or steps[place] != line.record["step"]:
                    steps.insert(place, line.record["step"])

    def _has(self, uid: str, key: str, step: int, batch: set[tuple[str, int]]) -> bool:
        steps = self._steps.get((uid, key), ())
        place = bisect_left(steps, step)
        return (place < len(steps) and steps[place] == step) or (key, step) in batch

    def _keep_code(self, package: Path, digest: str, files: Iterable[Path]) -> Path:
        """Copy a package's files to `code/<digest>/<package>`, once for each version of the code."""
        target = self.folder / "code" / digest / package.name
        if target.exists():
            return target
        part = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        for path in files:
            copy = part / path.relative_to(package)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            part.rename(target)
        except OSError:
            # Another process kept the same code in the meantime.
            if not target.exists():
                raise
            shutil.rmtree(part)
        return target


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _line(kind: str, uid: str, fields: Mapping[str, Any], time_ms: int) -> bytes:
    record = {"v": FORMAT, "kind": kind, "uid": uid, "time_ms": time_ms, **fields}
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
