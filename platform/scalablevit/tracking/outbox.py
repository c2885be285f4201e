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

from scalablevit.config.packages import package_files, package_sum
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
    NotificationRecord,
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
"""Bytes that are read at a time to find the end of the last complete line."""
MAX_STEP = 2**63 - 1
"""Largest step, as a signed 64-bit integer holds it."""


Texts: TypeAlias = Mapping[str, object]
"""Tags or parameters by name, which the caller chooses; values are stored as `str(value)`, as MLflow has them."""


@dataclass(frozen=True)
class Line:
    """One complete line of the file."""

    record: Record | None
    """The record; None where the line is no record (a damaged disk, a later format)."""
    raw: bytes
    """The line's bytes, with its end."""
    end: int
    """Byte offset of the next line."""


def outbox_of(run: Path) -> Path:
    """Return the outbox's folder in a run's folder; an outbox of an earlier release keeps its older name."""
    former = run / FORMER_OUTBOX
    return former if former.is_dir() else run / OUTBOX


def now_ms() -> int:
    """Return the present time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def read_lines(folder: Path, offset: int = 0) -> Iterator[Line]:
    """Yield the complete lines from a byte offset on; needs no lock, since a line without its end is skipped."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            offset += len(raw)
            yield Line(parse_line(raw), raw, offset)


def count_lines(folder: Path, offset: int) -> int:
    """Return the number of complete lines after a byte offset."""
    with (folder / RECORDS).open("rb") as file:
        file.seek(offset)
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def open_runs(folder: Path) -> dict[str, int]:
    """Return the runs that were begun and not ended: by uid the time of the latest record, in ms since the epoch."""
    latest: dict[str, int] = {}
    for line in read_lines(folder):
        record = line.record
        if record is None:
            continue
        if record.kind == RunRecord.kind or record.uid in latest:
            latest[record.uid] = max(record.time_ms, latest.get(record.uid, 0))
        if record.kind == EndRecord.kind:
            latest.pop(record.uid, None)
    return latest


def lacks_finish(folder: Path, uid: str) -> bool:
    """Return whether a run was begun and never ended as finished; `sync` may have ended it as killed meanwhile."""
    begun = False
    for line in read_lines(folder):
        record = line.record
        if record is None or record.uid != uid:
            continue
        begun = begun or isinstance(record, RunRecord)
        if isinstance(record, EndRecord) and record.status == "FINISHED":
            return False
    return begun


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
    """Return a number for JSON, which has no NaN nor infinities: they become strings that `float()` reads back."""
    value = float(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value


class Outbox:
    """Appends records to the outbox; several processes and threads may do so at once.

    Every record is one JSON line; `tracking.records` has the fields of each kind. A process that is killed while it
    writes leaves at most one incomplete line, which the next writer cuts off.

    Args:
        folder: the outbox's folder, created if missing; on a local disk that outlives the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.folder / RECORDS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._mutex = threading.Lock()
        # Steps already recorded by (uid, metric, roll-backs), in ascending order, from the part of the file before
        # `_read_to`.
        self._steps: dict[tuple[str, str, int], array[int]] = {}
        self._read_to = 0
        with self._exclusive_access():
            # A new file survives a power cut only when its folder's entry is on the disk, too.
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
        archive: bool | None = None,
    ) -> None:
        """Append a `ModelRecord`, and copy our package into the outbox: the job's copy of it vanishes with the job.

        Args:
            uid: uid of the run that trained the model.
            name: registered model's name.
            folder: holds `weights.safetensors` and `config.json`; must exist until the record is sent.
            package: folder of the import package that the model's code needs.
            serving: file inside `package` that calls `mlflow.models.set_model`, relative path.
            requirements: `name==version` lines.
            tags: lineage, by the names of `tracking.tags`; hashes and run uid are added here.
            alias: alias that will point at the version.
            user_code: content sums, by name, of users' packages that the model's code imports, too, which
                `keep_user_code` has copied before.
            description: description of the version in Markdown, see `ModelRecord`.
            outputs: columns of a prediction, see `ModelRecord`.
            sample: an image file in base64, see `ModelRecord`.
            archive: whether the package goes as one zip file, see `ModelRecord`.
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
            archive=archive,
        )
        self._append(record)

    def keep_user_code(self, package: Path, digest: str) -> None:
        """Copy a user's package into the outbox before a training, during which its files may change or vanish.

        Args:
            package: folder of the package.
            digest: its content sum.

        Raises:
            ValueError: the content sum of its files is another one.
        """
        copy = self._keep_code(package, digest, package_files(package))
        if package_sum(copy) != digest:
            shutil.rmtree(copy)
            raise ValueError(f"the files of {package.name} have changed")

    def end(self, uid: str, status: Status, *, time_ms: int | None = None) -> None:
        """Append an `EndRecord`; `time_ms` is when the run ended, in milliseconds since the epoch (None: now)."""
        self._append(EndRecord(uid, now_ms() if time_ms is None else time_ms, status))

    def notification(self, record: NotificationRecord) -> None:
        """Append a `NotificationRecord`."""
        self._append(record)

    def metrics(self, uid: str, records: Iterable[StepMetrics]) -> int:
        """Append a `MetricsRecord` for each step.

        A point whose (uid, name, step, roll-backs) is already in the file is dropped: after a restart steps are
        reported again, and the first report counts. After a roll-back the steps are others, so their points are
        written again. Nothing is written unless all records are valid.

        Returns:
            The number of points that were appended.

        Raises:
            KeyError, TypeError, ValueError: a record does not have the form of `StepMetrics`.
            OSError: the records could not be written; the caller may try again.
        """
        valid = [
            (
                _step(record["step"]),
                operator.index(record["time_ms"]),
                {str(key): _jsonable(value) for key, value in record["metrics"].items()},
                operator.index(record.get("roll_backs", 0)),
            )
            for record in records
        ]
        with self._exclusive_access():
            self._catch_up()
            batch: set[tuple[str, int, int]] = set()
            lines = []
            for step, time_ms, values, roll_backs in valid:
                new = {
                    key: value
                    for key, value in values.items()
                    if (key, step, roll_backs) not in batch and not self._has(uid, key, step, roll_backs)
                }
                batch.update((key, step, roll_backs) for key in new)
                if new:
                    lines.append(write_line(MetricsRecord(uid, time_ms, step, new, roll_backs)))
            self._write(b"".join(lines))
            self._catch_up()
        return len(batch)

    def sync(self) -> None:
        """Wait until all that was appended is on the disk itself, safe from a power cut."""
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close the file."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def _append(self, record: Record) -> None:
        with self._exclusive_access():
            self._write(write_line(record))
        self.sync()

    @contextmanager
    def _exclusive_access(self) -> Iterator[None]:
        """Allow one writer at a time (mutex for threads, lock for processes), after cutting off an incomplete line."""
        with self._mutex:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            try:
                self._cut_incomplete_line()
                yield
            finally:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _cut_incomplete_line(self) -> None:
        """Cut off an incomplete last line: nobody else writes under our lock, so its writer died."""
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
        """Read which points any process has appended since the last call."""
        for line in read_lines(self.folder, self._read_to):
            self._read_to = line.end
            record = line.record
            if not isinstance(record, MetricsRecord):
                continue
            for key in record.metrics:
                steps = self._steps.setdefault((record.uid, key, record.roll_backs), array("q"))
                index = bisect_left(steps, record.step)
                if index == len(steps) or steps[index] != record.step:
                    steps.insert(index, record.step)

    def _has(self, uid: str, key: str, step: int, roll_backs: int) -> bool:
        steps = self._steps.get((uid, key, roll_backs), ())
        index = bisect_left(steps, step)
        return index < len(steps) and steps[index] == step

    def _keep_code(self, package: Path, digest: str, files: Iterable[Path]) -> Path:
        """Copy a package's files to `code/<digest>/<package>`, once for each version of the code; return the folder."""
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
            # Another process has copied the same code in the meantime.
            if not target.exists():
                raise
            shutil.rmtree(part)
        return target


def _strings(values: Texts) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
