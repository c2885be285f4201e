"""SHA-256 sums of files' contents, cached by size and times, so that unchanged files are not read again."""

import os
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.progress import OutOfTime, Progress
from scalablevit.data.sources.listing import Names
from scalablevit.io import sha256_of
from scalablevit.machine import machine_id

THREADS = 16
"""Threads for stat and hashing, which mostly wait for storage."""
SUM_BYTES = 32
"""Bytes of a SHA-256 sum."""
SETTLED_NS = 2 * 10**9
"""Nanoseconds. A file that changed less than this before it was hashed may change again within the same tick of its
file system's clock: its times are not trusted, and it is hashed again the next time."""
SAVE_EVERY_S = 20.0
"""Seconds between saves while hashing: an interruption loses no more work."""
KEPT_DAYS = 180
"""Days after which the sums of an unused folder are deleted."""

_TABLE = """create table if not exists folders (
    folder text, node text, used real, names blob, ends blob, stamps blob, sums blob, primary key (folder, node))"""


@dataclass(frozen=True)
class Contents:
    """Stamps, sizes and sums of files, one row for each file."""

    stamps: NDArray[np.int64]
    """(files, 3) size in bytes, mtime and ctime in nanoseconds; zeros where they are not trusted (`SETTLED_NS`)."""
    sizes: NDArray[np.int64]
    """(files,) bytes; -1 where there is no file."""
    sums: NDArray[np.uint8]
    """(files, 32) SHA-256; zeros where a file cannot be read."""

    @classmethod
    def concatenate(cls, parts: "list[Contents]") -> "Contents":
        """Return the rows of several, one after another."""
        return cls(
            np.concatenate([part.stamps for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.sums for part in parts]),
        )

    def has_changed(self, row: int, path: str) -> bool:
        """Return whether a file's contents differ from its row; where only the times differ, update the row's.

        For a file that is missing or cannot be read, return False: its reader reports it.

        Args:
            row: index of the file.
            path: of the file.
        """
        stamp = file_stamp(path)
        if stamp == tuple(self.stamps[row].tolist()) or stamp[0] < 0:
            return False
        before = time.time_ns()
        if (content := file_sum(path)) is None:
            return False
        if content != self.sums[row].tobytes():
            return True
        if _is_settled(stamp, before):
            self.stamps[row] = stamp
        return False


def node_name() -> str:
    """Return what tells this node from others: its `machine_id()`, else its host name."""
    return machine_id() or socket.gethostname()


class ContentCache:
    """Cache of sums by folder and node, in one SQLite file; copies on each node's own disk have different times.

    If the file cannot be used, a line is printed once, and all contents are hashed again.

    Args:
        file: the SQLite file; it is created when it is first used.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._broken = False

    @classmethod
    def in_root(cls, root: Path) -> "ContentCache":
        """Return the cache of a platform root."""
        return cls(root / "cache" / "contents.sqlite")

    def load(self, folder: str) -> tuple[Names, NDArray[np.int64], NDArray[np.uint8]] | None:
        """Return names, trusted stamps (files, 3) and sums (files, 32) of a folder's files here, if known."""
        node = node_name()
        self._run("update folders set used = ? where folder = ? and node = ?", (time.time(), folder, node))
        # earlier releases knew nodes by their host names only
        rows = self._run("select names, ends, stamps, sums from folders where folder = ? and node in (?, ?) "
                         "order by node = ? desc", (folder, node, socket.gethostname(), node))  # fmt: skip
        if not rows:
            return None
        names, ends, stamps, sums = rows[0]
        try:
            return (
                Names(np.frombuffer(names, np.uint8), np.frombuffer(ends, np.int64)),
                np.frombuffer(stamps, np.int64).reshape(-1, 3),
                np.frombuffer(sums, np.uint8).reshape(-1, SUM_BYTES),
            )
        except ValueError:
            return None

    def save(self, folder: str, names: Names, stamps: NDArray[np.int64], sums: NDArray[np.uint8]) -> None:
        """Store names, trusted stamps (files, 3) and sums (files, 32) of a folder's files; delete old folders."""
        blobs = (names.block.tobytes(), names.ends.tobytes(), stamps.tobytes(), sums.tobytes())
        self._run("insert or replace into folders values (?, ?, ?, ?, ?, ?, ?)",
                  (folder, node_name(), time.time(), *blobs))  # fmt: skip
        self._run("delete from folders where used < ?", (time.time() - KEPT_DAYS * 86400,))

    def _run(self, query: str, values: tuple[object, ...]) -> list[tuple[bytes, ...]]:
        if self._broken:
            return []
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=60)) as connection, connection:
                connection.execute(_TABLE)
                return connection.execute(query, values).fetchall()
        except (sqlite3.Error, OSError) as error:
            self._broken = True
            print(f"{self.file} cannot be used ({error}): contents are hashed again; remove it if it is damaged",
                  flush=True)  # fmt: skip
            return []


def file_stamp(path: str) -> tuple[int, int, int]:
    """Return a file's size in bytes, mtime and ctime in nanoseconds; (-1, 0, 0) where there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  # a million of them
    except (OSError, ValueError):  # absent, or a name that no file can have
        return -1, 0, 0
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_sum(path: str) -> bytes | None:
    """Return the SHA-256 of a file, 32 bytes; None where it cannot be read."""
    try:
        return bytes.fromhex(sha256_of(path))
    except (OSError, ValueError):
        return None


def read_contents_of(
    folder: Path, names: Names, cache: ContentCache | None, what: str, deadline: float | None, part: str = ""
) -> Contents:
    """Return sizes, times and sums of files; only files that the cache does not know by size and times are read.

    Args:
        folder: that the names are relative to.
        names: of the files, in order.
        cache: stores the sums, also after a deadline or an interruption; None: all files are read.
        what: begins lines of progress, such as `data.train`.
        deadline: time of `time.monotonic()`, in seconds; None: no deadline.
        part: name of a part of the data set; parts in the same folder have separate entries in the cache.

    Raises:
        OutOfTime: the deadline has passed.
    """
    key = f"{folder}#{part}"
    progress = Progress(f"{what}: names and sizes", len(names), "files", deadline)
    current = np.concatenate([np.zeros((0, 3), np.int64), *_current_stamps(folder, names, progress)])
    stamps, sums = _known_sums(names, current, cache.load(key) if cache else None)
    unknown = np.flatnonzero((stamps[:, 2] == 0) & (current[:, 0] >= 0))
    if len(unknown):
        total = float(current[unknown, 0].sum()) / 2**20
        progress = Progress(f"{what}: hashing {len(unknown):,} files", total, "MiB", deadline)
        try:
            _hash(folder, names, unknown, current, stamps, sums, progress, cache, key)
        finally:
            if cache:
                cache.save(key, names, stamps, sums)
        seconds = time.monotonic() - progress.started
        if seconds > 1:
            print(f"{what}: hashed {len(unknown):,} files, {total:,.4g} MiB, in {seconds:.1f} s", flush=True)
    return Contents(stamps, current[:, 0].copy(), sums)


def _parts(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _current_stamps(folder: Path, names: Names, progress: Progress) -> list[NDArray[np.int64]]:
    """Return size and times of all files as they are now, in parts (n, 3)."""

    def stamps_of(part: range) -> NDArray[np.int64]:
        stamps = np.array([file_stamp(f"{folder}/{names[i]}") for i in part], np.int64)
        progress.add(len(part))
        return stamps

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(stamps_of, _parts(len(names), 4096)))


def _known_sums(
    names: Names, current: NDArray[np.int64], cached: tuple[Names, NDArray[np.int64], NDArray[np.uint8]] | None
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return trusted stamps and sums of files whose size and times are as in the cache; zeros for the others."""
    stamps, sums = np.zeros_like(current), np.zeros((len(names), SUM_BYTES), np.uint8)
    if cached is None or not len(names):
        return stamps, sums
    old_names, old_stamps, old_sums = cached
    if names == old_names:
        new = old = np.arange(len(names))
    else:
        rows = {old_names.encoded(i): i for i in range(len(old_names))}
        pairs = [(i, rows[name]) for i in range(len(names)) if (name := names.encoded(i)) in rows]
        new, old = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (current[new] == old_stamps[old]).all(axis=1)
    stamps[new[same]], sums[new[same]] = old_stamps[old[same]], old_sums[old[same]]
    return stamps, sums


def _hash(
    folder: Path,
    names: Names,
    unknown: NDArray[np.int64],
    current: NDArray[np.int64],
    stamps: NDArray[np.int64],
    sums: NDArray[np.uint8],
    progress: Progress,
    cache: ContentCache | None,
    key: str,
) -> None:
    """Fill in the sums of the unknown rows, and their stamps where they can be trusted."""

    def hash_part(part: range) -> None:
        for row in unknown[part.start : part.stop].tolist():
            before = time.time_ns()
            content = file_sum(f"{folder}/{names[row]}")
            if content is not None:
                sums[row] = np.frombuffer(content, np.uint8)
                if _is_settled(tuple(current[row].tolist()), before):
                    stamps[row] = current[row]
            progress.add(float(current[row, 0]) / 2**20)

    saved = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for _ in pool.map(hash_part, _parts(len(unknown), 64)):
                if cache and time.monotonic() - saved > SAVE_EVERY_S:
                    cache.save(key, names, stamps, sums)
                    saved = time.monotonic()
        except (OutOfTime, KeyboardInterrupt):
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _is_settled(stamp: tuple[int, ...], before_ns: int) -> bool:
    """Return whether a file's ctime, which unlike its mtime cannot be set, is long enough before a time."""
    return stamp[2] < before_ns - SETTLED_NS
