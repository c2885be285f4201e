"""One owner for a run: a claim in its folder, renewed while the owner lives."""

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow.fs

from scalablevit.config.errors import UserError
from scalablevit.run_files import LEASE, LEASE_LOCK, LEASE_WATCHED
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.signals import interrupt
from scalablevit.training.storage import open_filesystem, put_text

RENEW_S = 5.0
STALE_S = 30.0
WATCH_S = 0.5
"""Between two looks at a claim of another machine."""
SETTLE_S = 0.5
"""Between writing a claim and reading it back, for storage without locks: of two that claim at once the later writer
owns the run. Who writes later than this after looking is noticed by the owner's next renewal."""
LOCK_S = 10.0
"""Longest wait for another process that looks at or writes the claim, which takes milliseconds."""

Claim = dict[str, Any]


class Lease:
    """Held as a context; a second job on the same run gets an error that names the holder."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._token = secrets.token_hex(8)
        self._started = time.time()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        try:
            while not self._claim_over(self._claim_without_owner()):
                pass  # another one was quicker: whose claim is it now?
        except TimeoutError as error:
            raise UserError(
                f"run {self._store.name}: {error}",
                where=f"{self._store.location}/{LEASE_LOCK}",
                fix="look for a suspended process of an earlier job; if there is none on any node, remove the file",
            ) from None
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=RENEW_S)
        try:
            with self._exclusively():
                if self._is_own(self._read()):
                    self._store.write(LEASE, b"{}")
        except OSError as failure:  # storage that is away or full: the claim is then taken over as a dead owner's
            print(f"clean-up: releasing the lease of {self._store.name} failed: {failure}", file=sys.stderr, flush=True)

    def is_held(self) -> bool:
        """Whether the claim is still this one's, and not another process's that took it over."""
        return self._is_own(self._read())

    def _claim_without_owner(self) -> Claim | None:
        """The claim that stands there and may be replaced: that of a dead owner, or None.

        A claim from another machine is watched: it is dead when it stays the same for `STALE_S`. What the clocks of
        two machines say is not compared.

        Raises:
            UserError: its owner lives.
        """
        claim = self._read()
        if claim is None:
            return None
        alive = is_owner_alive(claim)
        if alive:
            raise self._refusal(claim)
        if alive is None:
            print(
                f"run {self._store.name} is claimed by process {claim.get('process')} on {claim.get('host')}; "
                f"waiting up to {STALE_S:.0f} s for a sign of life",
                flush=True,
            )
            end = time.monotonic() + STALE_S
            while time.monotonic() < end:
                time.sleep(WATCH_S)
                now = self._read()
                if now is not None and now != claim:
                    raise self._refusal(now)
                if now is None:
                    return None
        return claim

    def _refusal(self, claim: Claim) -> UserError:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(claim.get("started", 0))))
        process = claim.get("process")
        fix = f"wait for it, or stop it; a claim that is not renewed is taken over after {STALE_S:.0f} s"
        here = _state_and_start(process) if claim.get("machine") == _machine() else None
        if here and here[0] == "T":
            fix = f"it is suspended: `kill -CONT {process}` lets it go on, `kill -KILL {process}` ends it"
        return UserError(
            f"run {self._store.name} belongs to process {process} on {claim.get('host')} since {since}",
            where=f"{self._store.location}/{LEASE}",
            fix=fix,
        )

    def _claim_over(self, seen: Claim | None) -> bool:
        """Write the own claim in place of the one seen; False: another one came between."""
        with self._exclusively():
            begin = time.monotonic()
            if self._read() != seen:
                return False
            self._write()
            took = time.monotonic() - begin
        # for others without the lock, who need as long on the same storage from their look to their write
        time.sleep(max(SETTLE_S, 2 * took))
        return self._is_own(self._read())

    def _is_own(self, claim: Claim | None) -> bool:
        return claim is not None and claim["token"] == self._token

    def _read(self) -> Claim | None:
        return read_claim(self._store)

    def _write(self) -> None:
        here = _state_and_start(os.getpid())
        claim = {
            "token": self._token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "process_started": here and here[1],
            "started": self._started,
            "renewed": time.time(),
        }
        self._store.write(LEASE, json.dumps(claim).encode())

    def _renew(self) -> None:
        while not self._stopped.wait(RENEW_S):
            try:
                with self._exclusively():
                    if self._stopped.is_set():
                        return
                    content = self._store.read(LEASE)
                    if content is None or self._is_own(_parsed(content)):
                        self._write()
                        continue
            except OSError:
                continue  # storage that is away for a moment; a stale claim is what tells others
            # This process slept longer than a claim lasts, and another one took over and may have released the run
            # since: two writers must not be.
            other = _parsed(content) or {}
            print(
                f"run {self._store.name} was taken over, since this process did not renew its claim for too long; now: "
                f"process {other.get('process', 'none')} on {other.get('host', 'no host')}. This one stops.",
                file=sys.stderr,
                flush=True,
            )
            interrupt()
            return

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """No other process looks at or writes the claim meanwhile, where the file system has locks.

        Raises:
            TimeoutError: another one is at it for too long.
        """
        filesystem, folder = open_filesystem(self._store.location)
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        lock = _locked(f"{folder}/{LEASE_LOCK}") if local else None
        try:
            yield
        finally:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not be enough should a forked process have a copy
                os.close(lock)


def _locked(path: str) -> int | None:
    """Descriptor of a file that this process has locked; None where that is impossible."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # another user's file
        return None
    end = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise TimeoutError(f"another process has held the lock of its claim for {LOCK_S:.0f} s") from None
            time.sleep(0.02)
        except OSError:  # a file system without locks
            os.close(descriptor)
            return None


def _parsed(content: bytes | None) -> Claim | None:
    """The claim in a file; None when it was released."""
    try:
        claim = json.loads(content or b"{}")
    except ValueError:
        return None  # written by a process that died while writing to storage without renames
    return claim if isinstance(claim, dict) and "token" in claim else None


def read_claim(store: RunStore) -> Claim | None:
    """The claim on a run, whether its owner lives or not; None: nobody claims it."""
    return _parsed(store.read(LEASE))


def is_owner_alive(claim: Claim) -> bool | None:
    """Whether the owner behind a claim lives; None: it cannot be told from here, and the claim must be watched."""
    return _lives_here(claim) if claim.get("machine") == _machine() else None


def known_owners(stores: Sequence[RunStore]) -> dict[str, bool | None]:
    """Whether each run's owner lives, by the run's name, as far as it can be told without waiting; None: it cannot.

    A claim that was watched once and was not renewed is dead for as long as it stays the same.
    """
    alive: dict[str, bool | None] = {}
    for store in stores:
        claim = read_claim(store)
        alive[store.name] = False if claim is None else is_owner_alive(claim)
        if alive[store.name] is None and _watched_before(store) == claim:
            alive[store.name] = False
    return alive


def find_owned(stores: Sequence[RunStore]) -> set[str]:
    """Names of the runs whose owners live; where only watching tells, all are watched together for `STALE_S`."""
    alive = known_owners(stores)
    claims = {store.name: read_claim(store) for store in stores if alive[store.name] is None}
    watched = [store for store in stores if store.name in claims]
    if watched:
        print(f"waiting up to {STALE_S:.0f} s for a sign of life of runs of other machines: "
              f"{', '.join(store.name for store in watched)}", file=sys.stderr, flush=True)  # fmt: skip
    end = time.monotonic() + STALE_S
    while watched and time.monotonic() < end:
        time.sleep(WATCH_S)
        now = {store.name: read_claim(store) for store in watched}
        alive |= {name: claim is not None for name, claim in now.items() if claim != claims[name]}
        watched = [store for store in watched if alive[store.name] is None]
    for store in watched:
        with suppress(OSError):  # a root that may only be read: it is watched again the next time
            put_text(str(store.local), LEASE_WATCHED, json.dumps(claims[store.name]))
    return {name for name, answer in alive.items() if answer}


def _watched_before(store: RunStore) -> Claim | None:
    """The claim that was watched last and not renewed."""
    try:
        return _parsed((store.local / LEASE_WATCHED).read_bytes())
    except OSError:
        return None


def _lives_here(claim: Claim) -> bool | None:
    """Whether the process of a claim from this machine lives; None: it cannot be told."""
    found = _state_and_start(claim["process"])
    if found is None:
        # there are systems that hide the processes of other users
        return None if psutil.pid_exists(claim["process"]) else False
    state, start = found
    return state not in ("Z", "X") and start == claim["process_started"]


def _state_and_start(process: Any) -> tuple[str, int] | None:
    """Letter of a process's state, and its start in clock ticks since boot, which setting the clock does not move."""
    try:
        # the name before the last bracket may hold anything
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[19])


@cache
def _machine() -> str:
    """Where a number means the same process: this boot of this machine, and this container.

    Host names are no proof: machines share them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # unknown, and so none of the others
