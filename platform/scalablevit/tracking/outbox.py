"""The outbox: every record meant for MLflow, appended to one file on local disk; the source of truth."""

import errno
import fcntl
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
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from scalablevit.config.packages import content_sum, package_files
from scalablevit.io import sha256_of
from scalablevit.run_files import CONFIG_NAME, FORMER_OUTBOX, OUTBOX, RECORDS, WEIGHTS_NAME
from scalablevit.tracking import tags as tag_names
from scalablevit.tracking.environment import code_digest, code_files
from scalablevit.tracking.records import (
    ArtifactRecord,
    DatasetRecord,
    EndRecord,
    MetricsRecord,
    ModelRecord,
    ParamsRecord,
    Record,
    RunRecord,
    Status,
    StepMetrics,
    TagsRecord,
    parse_line,
    write_line,
)

TAIL_BLOCK = 1 << 16
MAX_STEP = 2**63 - 1


Texts: TypeAlias = Mapping[str, object]
"""Tags or parameters by names that are the caller's; MLflow has texts, so of each value `str(value)` is kept."""


@dataclass(frozen=True)
class Line:
    """One complete line of the file."""

    record: Record | None
    """The record, or None where the line is not one (a damaged disk, a later format)."""
    raw: bytes
    end: int
    """Byte offset just after it: where reading goes on."""


def outbox_of(run: Path) -> Path:
    """Return the outbox's folder in a run's folder; one that an earlier release began stays where it is."""
    former = run / FORMER_OUTBOX
    return former if former.is_dir() else run / OUTBOX


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
            yield Line(parse_line(raw), raw, offset)


def count_lines(folder: Path, offset: int) -> int:
    """Return the complete lines after a byte offset."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def open_runs(folder: Path) -> dict[str, int]:
    """Runs that were begun and not ended: uid -> time of their latest record, milliseconds since the epoch."""
    last: dict[str, int] = {}
    for line in read_lines(folder):
        record = line.record
        if record is None:
            continue
        if record.kind == RunRecord.kind or record.uid in last:
            last[record.uid] = max(record.time_ms, last.get(record.uid, 0))
        if record.kind == EndRecord.kind:
            last.pop(record.uid, None)
    return last


def recorded_params(folder: Path, uid: str) -> set[str]:
    """Return the names of the parameters that were recorded of a run."""
    records = (line.record for line in read_lines(folder))
    return {
        name for record in records if isinstance(record, ParamsRecord) and record.uid == uid for name in record.params
    }


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

    Every record is one JSON line; `tracking.records` has the fields of each kind. A process killed while it writes
    leaves at most one torn line, which the next writer cuts off.

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
        tags: Texts | None = None,
    ) -> None:
        """Append a `RunRecord`."""
        self._append(RunRecord(uid, now_ms(), name, experiment, parent, _strings(tags or {})))

    def params(self, uid: str, params: Texts) -> None:
        """Append a `ParamsRecord`."""
        self._append(ParamsRecord(uid, now_ms(), _strings(params)))

    def tags(self, uid: str, tags: Texts) -> None:
        """Append a `TagsRecord`."""
        self._append(TagsRecord(uid, now_ms(), _strings(tags)))

    def artifact(self, uid: str, path: Path, artifact_path: str | None = None) -> None:
        """Append an `ArtifactRecord`."""
        self._append(ArtifactRecord(uid, now_ms(), str(Path(path).resolve()), artifact_path))

    def dataset(self, uid: str, *, name: str, digest: str, source: str, context: str) -> None:
        """Append a `DatasetRecord`."""
        self._append(DatasetRecord(uid, now_ms(), name, digest, source, context))

    def model(
        self,
        uid: str,
        *,
        name: str,
        folder: Path,
        package: Path,
        serving: str,
        requirements: Sequence[str],
        tags: Texts,
        alias: str = "candidate",
        user_code: Mapping[str, str] | None = None,
        description: str | None = None,
        outputs: str | None = None,
        sample: str | None = None,
    ) -> None:
        """Append a `ModelRecord`, and copy the packages into the outbox: a job's copies of them vanish with the job.

        Args:
            name: registered model's name.
            folder: holds `weights.safetensors` and `config.json`; must stay until sent.
            package: folder of the import package that the model's code needs.
            serving: file inside `package` that calls `mlflow.models.set_model`, relative path.
            requirements: `name==version` lines.
            tags: lineage, by the names of `tracking.tags`; hashes and run uid are added here.
            user_code: content sums, by name, of users' packages that the model's code imports besides, each kept before
                by `keep_user_code`.
            description: the version's, in Markdown, see `ModelRecord`.
            outputs: columns of a prediction, see `ModelRecord`.
            sample: an image file in base64, see `ModelRecord`.
        """
        package = Path(package).resolve()
        sums = {file: sha256_of(folder / file) for file in (WEIGHTS_NAME, CONFIG_NAME)}
        code = self._keep_code(package, code_digest(package), code_files(package))
        registration = sha256(f"{uid}\0{name}\0{sums[WEIGHTS_NAME]}".encode()).hexdigest()[:32]
        lineage = {
            **tags,
            tag_names.UID: registration,
            tag_names.RUN_UID: uid,
            tag_names.WEIGHTS_SHA256: sums[WEIGHTS_NAME],
            tag_names.CONFIG_SHA256: sums[CONFIG_NAME],
            tag_names.CODE_DIGEST: code.parent.name,
        }
        record = ModelRecord(
            uid,
            now_ms(),
            registration=registration,
            name=name,
            folder=str(Path(folder).resolve()),
            code=code.relative_to(self.folder).as_posix(),
            serving=serving,
            requirements=list(requirements),
            tags=_strings(lineage),
            alias=alias,
            user_code=[f"code/{digest}/{package}" for package, digest in (user_code or {}).items()] or None,
            description=description,
            outputs=outputs,
            sample=sample,
        )
        self._append(record)

    def keep_user_code(self, package: Path, digest: str) -> None:
        """Copy a user's package into the outbox before a training, which may last longer than its files stay.

        Raises:
            ValueError: its files are not those of the digest.
        """
        copy = self._keep_code(package, digest, package_files(package))
        if content_sum(copy) != digest:
            shutil.rmtree(copy)
            raise ValueError(f"the files of {package.name} have changed")

    def end(self, uid: str, status: Status, *, time_ms: int | None = None) -> None:
        """Append an `EndRecord`; `time_ms` is when the run ended (now, unless given)."""
        self._append(EndRecord(uid, now_ms() if time_ms is None else time_ms, status))

    def metrics(self, uid: str, records: Iterable[StepMetrics]) -> int:
        """Append a `MetricsRecord` for each step.

        A point whose (uid, name, step) is already in the file is dropped: after a restart steps are reported again,
        and the first report stands. Nothing is written unless all records are sound.

        Returns:
            Points kept.

        Raises:
            KeyError, TypeError, ValueError: a record has not the form of `StepMetrics`.
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
                    lines.append(write_line(MetricsRecord(uid, time_ms, step, fresh)))
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

    def _append(self, record: Record) -> None:
        with self._exclusively():
            self._write(write_line(record))
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
            record = line.record
            if not isinstance(record, MetricsRecord):
                continue
            for key in record.metrics:
                steps = self._steps.setdefault((record.uid, key), array("q"))
                place = bisect_left(steps, record.step)
                if place == len(steps) or steps[place] != record.step:
                    steps.insert(place, record.step)

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


def _strings(values: Texts) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
