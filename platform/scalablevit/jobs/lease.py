"""One owner for a run: a lease in its folder, renewed while the owner lives."""

import _thread
import json
import os
import secrets
import socket
import threading
import time
from types import TracebackType

import psutil

from scalablevit.config.errors import UserError
from scalablevit.jobs.run_store import RunStore

FILE = "lease.json"
RENEW_S = 5.0
STALE_S = 30.0
SETTLE_S = 0.5
"""Between writing a claim and reading it back: of two that claim at once the later writer owns the run."""


class Lease:
    """Held as a context; a second job on the same run is told who holds it."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._token = secrets.token_hex(8)
        self._started = time.time()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        holder = self._holder()
        if holder is not None and not _is_gone(holder):
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder["started"])))
            raise UserError(
                f"run {self._store.name} belongs to process {holder['process']} on {holder['host']} since {since}",
                where=f"{self._store.location}/{FILE}",
                fix=f"wait for it, or stop it; a claim that is not renewed is taken over after {STALE_S:.0f} s",
            )
        self._write()
        time.sleep(SETTLE_S)
        holder = self._holder()
        if holder is None or holder["token"] != self._token:
            raise UserError(
                f"run {self._store.name} was claimed by another job at the same moment",
                where=f"{self._store.location}/{FILE}",
                fix="let that one run",
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=RENEW_S)
        holder = self._holder()
        if holder is not None and holder["token"] == self._token:
            self._store.write(FILE, b"{}")

    def _holder(self) -> dict[str, float | str] | None:
        content = self._store.read(FILE)
        try:
            holder = json.loads(content) if content else None
        except ValueError:
            return None  # written by a process that died while writing to storage without renames
        return holder or None

    def _write(self) -> None:
        claim = {
            "token": self._token,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started": self._started,
            "renewed": time.time(),
        }
        self._store.write(FILE, json.dumps(claim).encode())

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW_S):
            try:
                holder = self._holder()
                if holder is not None and holder["token"] != self._token:
                    # this process slept longer than a claim lasts, and another took over: two writers must not be
                    _thread.interrupt_main()
                    return
                self._write()
            except OSError:
                continue  # storage that is away for a moment; a stale lease is what tells others


def _is_gone(holder: dict[str, float | str]) -> bool:
    """Proof that a holder lives no more: its process is gone on this host, or it stopped renewing."""
    if holder["host"] == socket.gethostname():
        try:
            process = psutil.Process(int(holder["process"]))
            return abs(process.create_time() - float(holder["process_started"])) > 1
        except psutil.NoSuchProcess:
            return True
    return time.time() - float(holder["renewed"]) > STALE_S
