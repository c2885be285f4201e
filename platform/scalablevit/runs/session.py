"""A run that this process owns: lease, status, outbox and the thread that sends it begin and end here, nowhere else."""

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
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.records import Status
from scalablevit.tracking.sync import OutboxSync, Pending

DRAIN_S = 120.0
"""Longest wait at a run's end for MLflow to take what is left; nothing is lost after it."""
FAILED_DRAIN_S = 20.0
"""The same when the run failed or was interrupted: long enough for its end to be recorded."""


class RunSession:
    """Held as a context, from the lease to the last record sent.

    At its end what is left goes to MLflow (`DRAIN_S`, or `FAILED_DRAIN_S` after a failure), the outbox is closed and
    the lease released, whatever of that fails.

    Args:
        store: the run's folder.
        tracking_uri: MLflow's address.

    Raises:
        UserError: another process owns the run.
    """

    uid: str
    """The run's, in MLflow."""
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
        """Wait for MLflow to take what is left, `DRAIN_S` at most; the session's end then does not wait again."""
        self._drained = True
        return self.sync.drain(DRAIN_S)

    @contextmanager
    def at_work(
        self,
        stage: str,
        total: int,
        unit: Literal["steps", "stages", "trials"],
        stopping: threading.Event | None = None,
    ) -> Iterator[StatusFile]:
        """Keep `status.json`; work that fails or is interrupted ends the run in MLflow too.

        Args:
            stage: its name, or those of the stages at work.
            total: what there is to do, in `unit`.
            stopping: set when the job was interrupted: whatever is then raised, the run was killed.
        """
        with StatusFile(self.store, self._lease, stage, total, unit, self._uri, stopping) as status_file:
            try:
                yield status_file
            except BaseException as failure:
                killed = isinstance(failure, KeyboardInterrupt) or (stopping is not None and stopping.is_set())
                status: Status = "KILLED" if killed else "FAILED"
                clean_up(failure, (f"recording the end of {self.store.name}",
                                   lambda: self.outbox.end(self.uid, status)))  # fmt: skip
                raise


def run_uid(store: RunStore) -> str:
    """Return the run's uid, kept in run storage, so that a restart goes on in the same MLflow run."""
    known = store.read_json(IDENTITY)
    if known is None:
        known = {"uid": uuid.uuid4().hex, "created": time.time()}
        store.write_json(IDENTITY, known)
    return str(known["uid"])
