"""A run that this process owns: lease, status, outbox and the thread that sends the outbox begin and end here only."""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Literal

from scalablevit.run_files import IDENTITY
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.lease import Lease
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import StatusFile
from scalablevit.tracking.notifications import Notifier
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.records import Status
from scalablevit.tracking.sync import OutboxSync, Pending

DRAIN_S = 120.0
"""Longest wait in seconds at a run's end for MLflow to take the remaining records; later they stay in the outbox. For
one that is away `sync.AWAY_S`."""
FAILED_DRAIN_S = 20.0
"""The same in seconds when the run failed or was interrupted: long enough to record its end."""


class RunSession:
    """Ownership of a run and the tracking of it, held as a context: from taking the lease to sending the last record.

    At its end the remaining records go to MLflow (for at most `DRAIN_S` seconds, `FAILED_DRAIN_S` after a failure), the
    outbox is closed and the lease released; each of these steps is tried even if another one fails.

    Args:
        store: the run's folder.
        tracking_uri: MLflow's address.

    Raises:
        UserError: on entry, when another process owns the run.
    """

    uid: str
    """The run's uid, which a tag of its MLflow run holds."""
    outbox: Outbox
    sync: OutboxSync

    def __init__(self, store: RunStore, tracking_uri: str) -> None:
        self.store = store
        self._uri = tracking_uri
        self._lease = Lease(store)
        self._opened = ExitStack()
        self._drained = False

    def __enter__(self) -> "RunSession":
        with ExitStack() as opened:
            opened.enter_context(self._lease)
            self.uid = run_uid(self.store)
            self.outbox = Outbox(self.store.outbox)
            self.sync = OutboxSync(self.store.outbox, self._uri)
            self.sync.start()
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._opened:
            if failure is not None or not self._drained:
                wait_s = FAILED_DRAIN_S if failure is not None else DRAIN_S
                send = [(f"sending {self.outbox.folder}", lambda: self.sync.drain(wait_s))]
            else:
                send = []
            clean_up(
                failure,
                *send,
                (f"ending the thread that sends {self.outbox.folder}", self.sync.stop),
                (f"closing {self.outbox.folder}", self.outbox.close),
            )

    def drain(self) -> Pending:
        """Wait up to `DRAIN_S` seconds for MLflow to take the remaining records, once for the session."""
        self._drained = True
        return self.sync.drain(DRAIN_S)

    @contextmanager
    def at_work(
        self,
        stage: str,
        total: int,
        unit: Literal["steps", "stages", "trials"],
        stopping: threading.Event | None = None,
        notifier: Notifier | None = None,
    ) -> Iterator[StatusFile]:
        """Keep `status.json` up to date inside the block; record a failure or an interrupt in MLflow, too.

        Args:
            stage: name of the stage, or names of the stages at work.
            total: how much there is to do, in `unit`.
            unit: what `total` counts.
            stopping: set when the job was interrupted: the run then counts as killed, whatever exception is raised.
            notifier: records a failure; None: nobody is notified.
        """
        with StatusFile(self.store, self._lease, stage, total, unit, self._uri, stopping) as status_file:
            try:
                yield status_file
            except BaseException as failure:
                killed = isinstance(failure, KeyboardInterrupt) or (stopping is not None and stopping.is_set())
                status: Status = "KILLED" if killed else "FAILED"
                clean_up(failure, (f"recording the end of {self.store.name}",
                                   lambda: self.outbox.end(self.uid, status)))  # fmt: skip
                if notifier is not None and not killed:
                    notifier.record("failed", *status_file.best)
                raise


def run_uid(store: RunStore) -> str:
    """Return the run's uid; a new one is stored in run storage, so that a restart continues the same MLflow run."""
    identity = store.read_json(IDENTITY)
    if identity is None:
        identity = {"uid": uuid.uuid4().hex, "created": time.time()}
        store.write_json(IDENTITY, identity)
    return str(identity["uid"])
