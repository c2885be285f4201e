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
from scalablevit.data.names import shown
from scalablevit.run_files import IDENTITY, STATUS
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import format_error, without_credentials
from scalablevit.training.ray_internals import JOB_VARIABLE
from scalablevit.training.storage import put_text

WRITE_S = 5.0
"""Steps are written at most this often; a new state, stage or best value at once."""

State = Literal["started", "running", "finished", "failed", "killed"]
ENDED = ("finished", "failed", "killed")
Seconds = Annotated[float, Field(ge=0, le=1e11)]
"""Since the epoch."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    metric: str
    value: float
    step: int


@dataclass(frozen=True)
class Status:
    """What `status.json` holds; times are seconds since the epoch by the driver's clock.

    A file that says `started` or `running` proves nothing: its writer may have died without a word. Whether it lives,
    the run's lease tells (`cli/runs.py` asks it).
    """

    run: str
    state: State
    why: str
    """Of an end that was not the planned one: one line, without secrets."""
    stage: str
    """Stages at work, or the searched one."""
    step: int
    total: int
    unit: Literal["steps", "stages", "trials"]
    """What `step` and `total` count."""
    best: Best | None
    host: str
    process: int
    """Of the driver."""
    job: str
    """Ray's submission id; empty when it was not submitted as a job."""
    started: Seconds
    updated: Seconds
    ended: Seconds | None
    folder: str
    tracking: str
    """MLflow's address, without credentials."""


_STATUS = TypeAdapter(Status)


def read_status(local: Path) -> Status | None:
    """The status in a run's folder on this disk; None where there is none.

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
            f"not readable as a status: {': '.join([*map(str, first['loc']), shown(first['msg'])])}",
            where=str(local / STATUS),
            fix="remove the file; the run writes it again when it goes on",
        ) from None
    except OSError as error:
        raise UserError(
            f"not readable: {error.strerror or error}", where=str(local / STATUS), fix="make the file readable"
        ) from None


def store_of(local: Path) -> RunStore:
    """A run by its folder on this disk.

    What storage elsewhere holds is where the status says. A run that keeps its `IDENTITY` here keeps all here, also
    after its root was moved or copied.

    Raises:
        UserError: as `read_status`.
    """
    status = None if (local / IDENTITY).is_file() else read_status(local)
    return RunStore(local.name, status.folder if status is not None and status.folder else str(local), local)


def write_status(local: Path, status: Status) -> None:
    """Replace the file as a whole."""
    put_text(str(local), STATUS, json.dumps(asdict(status), indent=1))


def mark_finished(store: RunStore) -> None:
    """Of a run that is known to be finished: say so, should a kill have come before its status did."""
    found = read_status(store.local)
    if found is not None and found.state != "finished":
        write_status(store.local, replace(found, state="finished", why="", ended=time.time()))


class StatusFile:
    """Keeps `status.json` while its context lasts: `started`, then `running`, at the end what became of it.

    A file that cannot be written is reported once and ends nothing. Nothing is written after another process has taken
    over the run.

    Args:
        store: the run.
        lease: held by this process.
        stage: its name, or those of the stages at work.
        total: what there is to do, in `unit`.
        tracking_uri: MLflow's address; credentials in it are left out.
        stopping: set when the job was interrupted: whatever is then raised, the run was killed.
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

    def update(self, **changes: Any) -> None:
        """Take on what has changed (names of `Status`); the run is then at work."""
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
    """Write into a file that is there, whose blocks a full disk still has; less safe than to replace it.

    Raises:
        OSError: there is no such file, or the disk does not take more than it held.
    """
    content = json.dumps(asdict(status), indent=1).encode()
    with file.open("r+b") as existing:
        # spaces over what was longer: a file that is cut off first would be empty should the write fail
        existing.write(content.ljust(file.stat().st_size))


def _end(error: BaseException | None, uri: str, stopping: bool) -> tuple[State, str]:
    """Return the state that a run ends in, and why if not as planned."""
    if error is None:
        return "finished", ""
    if stopping or isinstance(error, KeyboardInterrupt):
        return "killed", "interrupted"
    why = format_error(error if isinstance(error, Exception) else Exception(repr(error)), uri)
    return "failed", why


def submission_id() -> str:
    """Under which name `ray job stop` knows this process; empty when it was not submitted as a job."""
    try:
        config = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
        return str(config.get("metadata", {}).get("job_submission_id", ""))
    except (ValueError, AttributeError):
        return ""
