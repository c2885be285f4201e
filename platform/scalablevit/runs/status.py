"""`status.json` in a run's folder: what the run is doing, for people and programs, without any server."""

import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from scalablevit.config.errors import UserError
from scalablevit.data.names import printable
from scalablevit.run_files import IDENTITY, STATUS
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import format_error, without_credentials
from scalablevit.training.ray_internals import JOB_VARIABLE
from scalablevit.training.storage import put_text

WRITE_S = 5.0
"""Seconds between two writes for new steps alone; a new state, stage or best value is written at once."""

State = Literal["started", "running", "finished", "failed", "killed"]
ENDED = ("finished", "failed", "killed")
Seconds = Annotated[float, Field(ge=0, le=1e11)]
"""A moment in seconds since the epoch."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: str
    value: float
    step: int
    """Optimizer steps done."""


@dataclass(frozen=True)
class Status:
    """What `status.json` holds; times are seconds since the epoch by the driver's clock.

    A file that says `started` or `running` proves nothing: its writer may have been killed. Whether the writer lives,
    the run's lease tells (`runs.lease`).
    """

    run: str
    state: State
    why: str
    """Reason of an end that was not the planned one: one line, without secrets; else empty."""
    stage: str
    """Names of the stages at work, or of the searched one."""
    step: int
    total: int
    unit: Literal["steps", "stages", "trials"]
    """What `step` and `total` count."""
    best: Best | None
    host: str
    """Name of the driver's machine."""
    process: int
    """Process id of the driver."""
    job: str
    """Ray's submission id; empty when it was not submitted as a job."""
    started: Seconds
    updated: Seconds
    ended: Seconds | None
    folder: str
    """The run's folder in run storage: a path or an address."""
    tracking: str
    """MLflow's address, without credentials."""


_STATUS = TypeAdapter(Status)


def read_status(local: Path) -> Status | None:
    """Return the status in a run's folder on this disk; None where there is no file.

    Raises:
        UserError: the file is damaged or cannot be read.
    """
    try:
        return _STATUS.validate_json((local / STATUS).read_bytes(), strict=True)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(
            f"not readable as a status: {': '.join([*map(str, first['loc']), printable(first['msg'])])}",
            where=str(local / STATUS),
            fix="remove the file; the run writes it again when it goes on",
        ) from None
    except OSError as error:
        raise UserError(
            f"not readable: {error.strerror or error}", where=str(local / STATUS), fix="make the file readable"
        ) from None


def store_of(local: Path) -> RunStore:
    """Return a run's store, found by its folder on this disk.

    The status says where run storage is. A run whose `IDENTITY` is in this folder keeps all its files here, also after
    its root was moved or copied.

    Raises:
        UserError: as `read_status`.
    """
    status = None if (local / IDENTITY).is_file() else read_status(local)
    return RunStore(local.name, status.folder if status is not None and status.folder else str(local), local)


def write_status(local: Path, status: Status) -> None:
    """Write `status.json`, replaced as a whole.

    Args:
        local: the run's folder on the driver's disk.
        status: the new content.
    """
    put_text(str(local), STATUS, json.dumps(asdict(status), indent=1))


def mark_finished(store: RunStore) -> None:
    """Correct the status of a run that is known to be finished, should a kill have come before its last write."""
    status = read_status(store.local)
    if status is not None and status.state != "finished":
        write_status(store.local, replace(status, state="finished", why="", ended=time.time()))


class StatusFile:
    """Keeps `status.json` while its context lasts: state `started`, then `running`, at the end how the run ended.

    A file that cannot be written is reported once and ends nothing. Nothing is written after another process has taken
    over the run.

    Args:
        store: the run's folder.
        lease: the run's lease, held by this process.
        stage: name of the stage, or names of the stages at work.
        total: how much there is to do, in `unit`.
        unit: what `step` and `total` count.
        tracking_uri: MLflow's address, stored without credentials.
        stopping: set when the job was interrupted: the run then counts as killed, whatever exception is raised.
    """

    def __init__(
        self,
        store: RunStore,
        lease: Lease,
        stage: str,
        total: int,
        unit: Literal["steps", "stages", "trials"],
        tracking_uri: str,
        stopping: threading.Event | None = None,
    ) -> None:
        now = time.time()
        self._local = store.local
        self._lease = lease
        self._uri = tracking_uri
        self._stopping = stopping or threading.Event()
        self._written = 0.0
        self._failed = False
        self._status = Status(
            run=store.name,
            state="started",
            why="",
            stage=stage,
            step=0,
            total=total,
            unit=unit,
            best=None,
            host=socket.gethostname(),
            process=os.getpid(),
            job=submission_id(),
            started=now,
            updated=now,
            ended=None,
            folder=store.location,
            tracking=without_credentials(tracking_uri),
        )

    def __enter__(self) -> "StatusFile":
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, why = _end(error, self._uri, self._stopping.is_set())
        self._status = replace(self._status, ended=time.time(), state=state, why=why)
        self._write()

    @property
    def best(self) -> tuple[str, float] | tuple[None, None]:
        """Return name and value of the metric at its best evaluation so far."""
        best = self._status.best
        return (None, None) if best is None else (best.metric, best.value)

    def update(self, **changes: Any) -> None:
        """Set the given fields of `Status`, and the state to `running` unless it is given."""
        before, self._status = self._status, replace(self._status, **{"state": "running", **changes})
        changed = replace(before, step=0) != replace(self._status, step=0)
        if changed or time.monotonic() - self._written >= WRITE_S:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._status = replace(self._status, updated=time.time())
        try:
            if self._lease.is_held():
                try:
                    write_status(self._local, self._status)
                except OSError:
                    if self._status.state not in ENDED:
                        raise
                    _overwrite(self._local / STATUS, self._status)
        except OSError as error:  # such as a full disk, which training survives
            if not self._failed:
                print(f"{self._local / STATUS} was not written: {error}", file=sys.stderr, flush=True)
            self._failed = True


def _overwrite(file: Path, status: Status) -> None:
    """Overwrite the existing file, whose blocks a full disk still has; less safe than to replace it.

    Raises:
        OSError: there is no such file, or the disk has no room for more than it held.
    """
    content = json.dumps(asdict(status), indent=1).encode()
    with file.open("r+b") as existing:
        # padded with spaces, not truncated first: if the write then failed, the file would be empty
        existing.write(content.ljust(file.stat().st_size))


def _end(error: BaseException | None, uri: str, stopping: bool) -> tuple[State, str]:
    """Return the state that a run ends in, and the reason if it is not the planned end."""
    if error is None:
        return "finished", ""
    if stopping or isinstance(error, KeyboardInterrupt):
        return "killed", "interrupted"
    why = format_error(error if isinstance(error, Exception) else Exception(repr(error)), uri)
    return "failed", why


def submission_id() -> str:
    """Return the submission id by which `ray job stop` knows this process; empty when it is no submitted job."""
    try:
        config = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    except (ValueError, AttributeError):
        return ""
