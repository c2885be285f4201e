"""Sends an outbox's records in order, to MLflow or elsewhere, from a thread of the driver; nothing waits for it."""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from scalablevit.run_files import REFUSED, SYNC_LOCK
from scalablevit.tracking.connection import (
    MESSAGE_LENGTH,
    Away,
    bounded_requests,
    check_uri,
    classify_error,
    connect,
    format_error,
    mask,
    without_credentials,
)
from scalablevit.tracking.mlflow_writer import METRICS_PER_CALL, MLflowWriter, Refusal, RunGone
from scalablevit.tracking.outbox import Line, Outbox, count_lines, now_ms, open_runs, read_lines
from scalablevit.tracking.records import ArtifactRecord, MetricsRecord, ModelRecord, RunRecord, UnreadLine
from scalablevit.tracking.sync_progress import SyncProgress, load_progress

POLL_S = 1.0
"""Seconds between two checks for new records."""
AWAY_S = 5.0
"""Longest wait in seconds, in `drain`, for a receiver that is away."""
LONGEST_PAUSE_S = 30.0
"""Longest pause in seconds between two tries while the server is away."""
REQUEST_TIMEOUT_S = 10
"""Longest wait in seconds for the response to one request."""
UPLOAD_TIMEOUT_S = 300
"""The same for an upload of files or a model."""
UNCLEAR_TRIES = 5
"""Tries of a record whose error says neither that the server is away nor that it refuses the record."""
LIVE_WITHIN_MS = 60_000
"""A run whose latest record is not older than this, in milliseconds, counts as still at work."""

logger = logging.getLogger(__name__)


def refused_records(folder: Path) -> list[str]:
    """Return a line for each run, kind and reason in an outbox's `refused.jsonl`: `run NAME, KIND: REASON`."""
    if not (folder / REFUSED).exists():
        return []
    names = {}
    for line in read_lines(folder):
        if isinstance(line.record, RunRecord):
            names[line.record.uid] = line.record.name
    counts = Counter[str]()
    for text in (folder / REFUSED).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(text)
            record, reason = entry["record"], " ".join(str(entry["reason"]).split())[:MESSAGE_LENGTH]
            run = names.get(record.get("uid"), record.get("run", record.get("uid")))  # notifications have its name
            kind = record.get("kind")
        except (ValueError, KeyError, TypeError, AttributeError):
            counts[f"a line of {REFUSED} that cannot be read"] += 1
            continue
        counts[f"run {run}, {kind}: {reason}" if kind else f"a line of the outbox: {reason}"] += 1
    return [line if count == 1 else f"{line} ({count} times)" for line, count in counts.items()]


@dataclass(frozen=True)
class Pending:
    """The records of an outbox that have not been sent."""

    records: int
    """Number of records still waiting in the outbox."""
    refused: int
    """Number of records, or parts of one, that this sync set aside in `refused.jsonl`."""
    error: str | None
    """Why records wait, on one line without secrets; None while nothing fails."""


class OrderedSync(ABC):
    """Sends one outbox to one receiver; among all processes, only one sync at a time sends an outbox.

    Sending is in order and repeatable: the offset moves after success, and all that may have been sent before a crash
    is sent again in a form that the receiver recognises. While it is away, the pause between tries doubles up to
    `LONGEST_PAUSE_S`; what it refuses for good is written to `refused.jsonl` with the reason and skipped.

    Args:
        folder: the outbox's folder.
        name: of the receiver, for messages.
        uri: its address; may hold user and password, which are shown and stored nowhere. Empty: the name tells all.
    """

    def __init__(self, folder: Path, name: str, uri: str = "") -> None:
        self._folder = Path(folder)
        self._uri = uri
        self._name = name
        self._receiver = f"{name} at {without_credentials(uri)}" if uri else name
        self._progress = SyncProgress(without_credentials(uri) if uri else name)
        self._refused = 0
        self._unclear = 0
        self._error: str | None = None
        self._away_since: float | None = None
        self._outage_reported = False
        self._pause_s = POLL_S
        self._draining = False
        self._trying = False
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"{name} sync", daemon=True)

    def start(self) -> None:
        """Begin sending in the background; the outbox's folder must exist."""
        self._thread.start()

    def drain(self, timeout_s: float) -> Pending:
        """Wait until everything has been sent, and return what is left; for a job's end.

        Args:
            timeout_s: longest wait in seconds; a receiver that is away is given up after `AWAY_S`, at the end of a try.
        """
        began = time.monotonic()
        self._draining = True
        self._wake.set()
        while time.monotonic() < began + timeout_s and self._thread.is_alive() and self._count_left():
            away_since = self._away_since
            given_up = away_since is not None and time.monotonic() > max(began, away_since) + AWAY_S
            if given_up and not self._trying:  # a try under way may be the one that succeeds
                break
            time.sleep(0.05)
        self._draining = False
        return self.pending()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread after its present request, waiting up to `timeout_s` seconds; the rest stays in the outbox."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)

    def pending(self) -> Pending:
        """Return what has not been sent."""
        return Pending(self._count_left(), self._refused, self._error)

    def status(self) -> str:
        """Return one line for people on what has been sent."""
        pending = self.pending()
        refused = f"; {pending.refused} refused, see {self._folder / REFUSED}" if pending.refused else ""
        if pending.records == 0:
            return f"{self._receiver}: everything sent{refused}"
        why = f" ({pending.error})" if pending.error else ""
        since = f" for {time.monotonic() - self._away_since:.0f} s" if self._away_since is not None else ""
        return f"{self._receiver}: {pending.records} records waiting{since}{why}{refused}"

    def send_left(self, *, from_start: bool = False) -> Pending:
        """Send the remaining records, in this thread, up to the first failure; for an outbox whose job has ended.

        Holding the sync's lock shows that no job is at work on the outbox, so runs without an end are recorded as
        KILLED, at the time of their latest record.

        Args:
            from_start: send every record again, for a server that lost some or refused some before; MLflow keeps one
                of each.

        Returns:
            What is still not sent.
        """
        try:
            with self._own_lock() as owned:
                if not owned:
                    raise Away(f"{self._owner()} is sending it")
                self._load()
                if from_start:
                    self._progress.offset = 0
                    (self._folder / REFUSED).unlink(missing_ok=True)
                self._end_dead_runs()
                while self._send_next():
                    pass
                self._error = None
        except Exception as error:
            self._error = format_error(error, self._uri)
        return self.pending()

    def _count_left(self) -> int:
        """Return the number of unsent records by the saved progress: another process may be the one that sends."""
        saved = load_progress(self._folder)
        same_server = saved is not None and saved.uri == self._progress.uri
        return count_lines(self._folder, saved.offset if saved is not None and same_server else 0)

    def _work(self) -> None:
        """Run the thread: wait for the lock, then send until `stop` is called."""
        while not self._stopping.is_set():
            try:
                with self._own_lock() as owned:
                    if owned:
                        self._load()
                        # even if nothing ever arrives: `scalablevit sync` then knows the server
                        self._progress.save(self._folder)
                        self._send_until_stopped()
                    else:
                        self._error = f"{self._owner()} is sending it"
            except Exception as error:
                # Such as a folder that was removed: reported once, tried again.
                self._failed(error)
            self._rest()

    def _send_until_stopped(self) -> None:
        while not self._stopping.is_set():
            self._trying = True
            try:
                while not self._stopping.is_set() and self._send_next():
                    self._succeeded()
                self._succeeded()
            except Exception as error:
                self._failed(error)
            self._trying = False
            self._rest()

    def _rest(self) -> None:
        if self._stopping.is_set():
            return
        self._wake.wait(min(self._pause_s, POLL_S) if self._draining else self._pause_s)
        self._wake.clear()

    def _load(self) -> None:
        self._progress = SyncProgress.load(self._folder, self._progress.uri)

    def _send_next(self) -> bool:
        """Send the next record, or the next metrics together; return False when nothing is left."""
        lines = self._next_lines()
        if not lines:
            return False
        try:
            refusals = self._send(lines)
        except RunGone:
            self._say(f"{self._name} no longer has a run that it had; everything is sent again from the outbox")
            self._progress.offset = 0
            self._progress.runs.clear()
            self._progress.save(self._folder)
            self._load()
            return True
        self._set_aside(refusals)
        self._unclear = 0
        self._progress.offset = lines[-1].end
        self._progress.save(self._folder)
        return True

    def _next_lines(self) -> list[Line]:
        """Return the next line, or as many metrics lines of one run as fit into one request."""
        lines: list[Line] = []
        points = 0
        for line in read_lines(self._folder, self._progress.offset):
            run = _run_of(line)
            if lines and run != _run_of(lines[0]):
                break
            lines.append(line)
            if not isinstance(line.record, MetricsRecord):
                break
            points += len(line.record.metrics)
            if points >= METRICS_PER_CALL:
                break
        return lines

    @abstractmethod
    def _send(self, lines: Sequence[Line]) -> list[Refusal]:
        """Send lines and return what the receiver refuses of them; raise an error after which to try again."""

    def _set_aside(self, refusals: Sequence[Refusal]) -> None:
        if not refusals:
            return
        with (self._folder / REFUSED).open("a") as file:
            for refusal in refusals:
                reason = mask(refusal.reason, self._uri)
                entry = {"time_ms": now_ms(), "reason": reason, "record": refusal.record.as_dict()}
                file.write(json.dumps(entry) + "\n")
        self._refused += len(refusals)
        reason = format_error(Exception(refusals[0].reason), self._uri)
        self._say(f"{self._name} refused {len(refusals)} of the records, kept in {self._folder / REFUSED}: {reason}")

    def _succeeded(self) -> None:
        if self._away_since is not None and self._outage_reported:
            self._say(f"{self._name} is back after {time.monotonic() - self._away_since:.0f} s; records are being sent")
        self._error = self._away_since = None
        self._outage_reported = False
        self._pause_s = POLL_S

    def _failed(self, error: Exception) -> None:
        self._error = format_error(error, self._uri)
        if self._away_since is None:
            self._away_since = time.monotonic()  # the next try may succeed, such as once the parent run is there
        elif not self._outage_reported:
            self._outage_reported = True
            self._say(f"{self._receiver}: {self._error}. Records wait in {self._folder}; training goes on")
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def _say(self, message: str) -> None:
        logger.warning(message)

    def _end_dead_runs(self) -> None:
        dead = {uid: latest for uid, latest in open_runs(self._folder).items() if now_ms() - latest > LIVE_WITHIN_MS}
        if dead:
            outbox = Outbox(self._folder)
            for uid, latest in dead.items():
                outbox.end(uid, "KILLED", time_ms=latest)
            outbox.close()

    @contextmanager
    def _own_lock(self) -> Iterator[bool]:
        """Try to take the sync's lock for the block, and yield whether it is ours; a process that dies releases it."""
        with (self._folder / SYNC_LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            _write_owner(file)
            yield True

    def _owner(self) -> str:
        return (self._folder / SYNC_LOCK).read_text() or "another process"


class OutboxSync(OrderedSync):
    """Sends one outbox to one MLflow server, which keeps one of each record however often it is sent.

    Args:
        folder: the outbox's folder.
        uri: MLflow server or SQLite address; may hold user and password, which are shown and stored nowhere.
        request_timeout_s: longest wait in seconds for one response; an upload may take `UPLOAD_TIMEOUT_S`, a new run
            `mlflow_writer.CREATE_TIMEOUT_S`.

    Raises:
        UserError: the address cannot be written to, see `connection.check_uri`.
    """

    def __init__(self, folder: Path, uri: str, *, request_timeout_s: int = REQUEST_TIMEOUT_S) -> None:
        check_uri(uri)
        super().__init__(folder, "MLflow", uri)
        self._request_timeout_s = request_timeout_s
        self._writer: MLflowWriter | None = None

    def _load(self) -> None:
        super()._load()
        self._writer = None

    def _send(self, lines: Sequence[Line]) -> list[Refusal]:
        records = [line.record for line in lines if line.record is not None]
        if not records:
            return [Refusal(UnreadLine(lines[0].raw), "not a record that this version can read")]
        upload = isinstance(records[0], ArtifactRecord | ModelRecord)
        with bounded_requests(UPLOAD_TIMEOUT_S if upload else self._request_timeout_s):
            try:
                if self._writer is None:
                    client = connect(self._uri)
                    self._writer = MLflowWriter(client, self._uri, self._folder, self._progress.runs)
                return self._writer.send(records)
            except RunGone:
                raise
            except Exception as error:
                if not self._is_final(error, records[0].uid):
                    raise
                return [Refusal(record, str(error)) for record in records]

    def _is_final(self, error: Exception, uid: str) -> bool:
        """Return whether trying again is of no use.

        An unclear error gets some tries, and then counts as a refusal only if the server accepts another write for the
        same run: a database that can be read but not written counts as away.
        """
        verdict = classify_error(error)
        if verdict != "unclear":
            return verdict == "refused"
        self._unclear += 1
        if self._unclear < UNCLEAR_TRIES or self._writer is None:
            return False
        return self._writer.takes_writes(uid)


def _write_owner(file: IO[str]) -> None:
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()


def _run_of(line: Line) -> str | None:
    """Return the run of a metrics line: those of one run are sent together; None for every other line."""
    return line.record.uid if isinstance(line.record, MetricsRecord) else None
