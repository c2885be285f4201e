"""One owner for a run: a claim in its folder, renewed while the owner lives."""

import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pyarrow.fs

from scalablevit.config.errors import UserError
from scalablevit.run_files import LEASE, LEASE_LOCK, LEASE_WATCHED
from scalablevit.runs.conditional_file import ConditionalFile
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.signals import interrupt
from scalablevit.training.storage import open_filesystem, put_text

RENEW_S = 5.0
"""Seconds between two renewals of the own claim."""
STALE_S = 30.0
"""Seconds without a change after which a claim of another machine counts as that of a dead owner."""
WATCH_S = 0.5
"""Seconds between two reads of a claim of another machine."""
SETTLE_S = 0.5
"""Seconds between writing a claim and reading it back, for storage without locks: of two processes that claim at once,
the later writer owns the run. One that writes later than this after its read is noticed at the owner's next renewal."""
LOCK_S = 10.0
"""Longest wait in seconds for another process that reads or writes the claim, which takes milliseconds."""

Claim = dict[str, Any]
"""Content of `LEASE`: token, host, machine, process and its start, and times in seconds since the epoch."""


class Lease:
    """Ownership of a run, held as a context; a second job on the same run gets an error that names the holder.

    Args:
        store: the run's folder.

    Raises:
        UserError: on entry, when another process owns the run or does not release the lock of its claim.
    """

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._token = secrets.token_hex(8)
        self._started = time.time()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._conditional: ConditionalFile | None = None

    def __enter__(self) -> "Lease":
        self._conditional = _conditional_file(self._store)
        try:
            while not self._replace_claim(self._claim_without_owner()):
                pass  # another process was quicker: read whose claim it is now
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
            self._swap(lambda content: self._is_own(_parse_claim(content)), lambda: b"{}")
        except OSError as failure:  # storage is away or full: the next job then finds the claim of a dead owner
            print(f"clean-up: releasing the lease of {self._store.name} failed: {failure}", file=sys.stderr, flush=True)

    def is_held(self) -> bool:
        """Return whether the claim is still this process's: False once another process took it over."""
        return self._is_own(self._read())

    def _claim_without_owner(self) -> Claim | None:
        """Return the present claim, which may be replaced because its owner is dead; None when there is no claim.

        A claim from another machine is watched: its owner is dead when it stays the same for `STALE_S` seconds. The
        clocks of two machines are not compared.

        Raises:
            UserError: the owner of the claim lives.
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

    def _replace_claim(self, previous: Claim | None) -> bool:
        """Write the own claim in place of a previous one; False: another process wrote one in between."""

        def is_previous(content: bytes | None) -> bool:
            claim = _parse_claim(content)
            return claim == previous or self._is_own(claim)  # own: written, and the store's answer was lost

        begin = time.monotonic()
        if not self._swap(is_previous, self._own_claim):
            return False
        if self._conditional is None:
            # for processes without the lock, which need as long on the same storage from their read to their write
            time.sleep(max(SETTLE_S, 2 * (time.monotonic() - begin)))
        return self._is_own(self._read())

    def _swap(self, may: Callable[[bytes | None], bool], content: Callable[[], bytes]) -> bool:
        """Write a new claim where the present content permits it; see `ConditionalFile.swap`."""
        if self._conditional is not None:
            return self._conditional.swap(may, content)
        with self._exclusive_access():
            if not may(self._store.read(LEASE)):
                return False
            self._store.write(LEASE, content())
        return True

    def _is_own(self, claim: Claim | None) -> bool:
        return claim is not None and claim["token"] == self._token

    def _read(self) -> Claim | None:
        return read_claim(self._store)

    def _own_claim(self) -> bytes:
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
        return json.dumps(claim).encode()

    def _renew(self) -> None:
        def may_renew(content: bytes | None) -> bool:
            return not self._stopped.is_set() and (content is None or self._is_own(_parse_claim(content)))

        while not self._stopped.wait(RENEW_S):
            try:
                if self._swap(may_renew, self._own_claim):
                    continue
                other = self._read() or {}
            except OSError:
                continue  # storage is away for a moment; a claim that stays stale tells the other processes
            if self._stopped.is_set():
                return
            # This process slept longer than a claim lasts, and another one took over and may have released the run
            # since: there must never be two writers.
            print(
                f"run {self._store.name} was taken over, since this process did not renew its claim for too long; now: "
                f"process {other.get('process', 'none')} on {other.get('host', 'no host')}. This one stops.",
                file=sys.stderr,
                flush=True,
            )
            interrupt()
            return

    @contextmanager
    def _exclusive_access(self) -> Iterator[None]:
        """Keep other processes from reading or writing the claim inside the block, where the file system has locks.

        Raises:
            TimeoutError: another process holds the lock for more than `LOCK_S` seconds.
        """
        filesystem, folder = open_filesystem(self._store.location)
        local = isinstance(filesystem, pyarrow.fs.LocalFileSystem)
        lock = _open_locked(f"{folder}/{LEASE_LOCK}") if local else None
        try:
            yield
        finally:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing would not be enough should a forked process have a copy
                os.close(lock)


def _conditional_file(store: RunStore) -> ConditionalFile | None:
    """Return the claim's file in an object store; None: for a local folder, and for a store without conditions."""
    if isinstance(open_filesystem(store.location)[0], pyarrow.fs.LocalFileSystem):
        return None
    try:
        return ConditionalFile(store.location, LEASE)
    except OSError as error:
        print(f"run {store.name}: its lease is the weaker one, by which the later of two jobs that start at once takes "
              f"the run, since {store.location} has no conditional writes for it ({error})", flush=True)  # fmt: skip
        return None


def _open_locked(path: str) -> int | None:
    """Open and lock a file, and return its descriptor; None where that is impossible."""
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


def _parse_claim(content: bytes | None) -> Claim | None:
    """Return the claim in a file's content; None when it was released."""
    try:
        claim = json.loads(content or b"{}")
    except ValueError:
        return None  # written by a process that died while writing to storage without renames
    return claim if isinstance(claim, dict) and "token" in claim else None


def read_claim(store: RunStore) -> Claim | None:
    """Return the claim on a run, whether its owner lives or not; None: nobody claims it."""
    return _parse_claim(store.read(LEASE))


def is_owner_alive(claim: Claim) -> bool | None:
    """Return whether the owner of a claim lives; None: this machine cannot tell, and the claim must be watched."""
    return _lives_here(claim) if claim.get("machine") == _machine() else None


def known_owners(stores: Sequence[RunStore]) -> dict[str, bool | None]:
    """Return by run name whether the run's owner lives; None where that cannot be told without waiting.

    The owner of a claim that was watched once and not renewed counts as dead for as long as the claim stays the same.
    """
    alive: dict[str, bool | None] = {}
    for store in stores:
        claim = read_claim(store)
        alive[store.name] = False if claim is None else is_owner_alive(claim)
        if alive[store.name] is None and _last_watched_claim(store) == claim:
            alive[store.name] = False
    return alive


def find_owned(stores: Sequence[RunStore]) -> set[str]:
    """Return the names of the runs whose owners live; claims that must be watched are watched together, `STALE_S` s."""
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
    return {name for name, lives in alive.items() if lives}


def _last_watched_claim(store: RunStore) -> Claim | None:
    """Return the claim that `find_owned` watched last without seeing a renewal; None where there is none."""
    try:
        return _parse_claim((store.local / LEASE_WATCHED).read_bytes())
    except OSError:
        return None


def _lives_here(claim: Claim) -> bool | None:
    """Return whether the process of a claim from this machine lives; None: it cannot be told."""
    process = _state_and_start(claim["process"])
    if process is None:
        # some systems hide the processes of other users
        return None if psutil.pid_exists(claim["process"]) else False
    state, start = process
    return state not in ("Z", "X") and start == claim["process_started"]


def _state_and_start(process: Any) -> tuple[str, int] | None:
    """Return the letter of a process's state, and its start in clock ticks since boot, which no clock change moves."""
    try:
        # the process's name, before the last bracket, may hold any character
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields[0].decode(), int(fields[19])


@cache
def _machine() -> str:
    """Return what makes process ids comparable: the id of this machine's boot, and the PID namespace (container).

    Host names do not: machines share them.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # unknown, so equal to no other machine
