"""SHA-256 of files' contents, kept by size and times: what has not changed is not read again."""

import os
import platform
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

THREADS = 16
"""For stating and hashing: waiting for storage, mostly."""
SUM_BYTES = 32
SETTLED_NS = 2 * 10**9
"""A file that was written so shortly before it was hashed may change again within the same tick of its clock: its
times are not trusted, and it is hashed again when it is looked at next."""
SAVE_EVERY_S = 20.0
"""While hashing: so much work is lost at most when it is interrupted."""
KEPT_DAYS = 180
"""Sums of folders that nobody looked at for so long are forgotten."""

_TABLE = """create table if not exists folders (
    folder text, node text, used real, names blob, ends blob, stamps blob, sums blob, primary key (folder, node))"""


@dataclass(frozen=True)
class Contents:
    """What is known of some files, a row each."""

    stamps: NDArray[np.int64]
    """(files, 3) size, mtime_ns and ctime_ns; zeros where they are not trusted."""
    sizes: NDArray[np.int64]
    """(files,) bytes; -1 where there is no file."""
    sums: NDArray[np.uint8]
    """(files, 32) SHA-256; zeros where a file cannot be read."""

    @classmethod
    def concatenate(cls, parts: "list[Contents]") -> "Contents":
        """The rows of several, one after another."""
        return cls(
            np.concatenate([part.stamps for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            np.concatenate([part.sums for part in parts]),
        )

    def has_changed(self, row: int, path: str) -> bool:
        """Whether a file has other contents than its row says; one with the same contents has its row's times renewed.

        A file that is not there or cannot be read is left to its reader.
        """
        found = file_stamp(path)
        if found == tuple(self.stamps[row].tolist()) or found[0] < 0:
            return False
        before = time.time_ns()
        if (content := content_sum(path)) is None:
            return False
        if content != self.sums[row].tobytes():
            return True
        if _is_settled(found, before):
            self.stamps[row] = found
        return False


class ContentCache:
    """Sums of files by folder and node (copies on each node's disk have times of their own), in one SQLite file.

    If the file cannot be used, one line reports it, and all contents are hashed again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._broken = False

    @classmethod
    def in_root(cls, root: Path) -> "ContentCache":
        """That of a platform root."""
        return cls(root / "cache" / "contents.sqlite")

    def load(self, folder: str) -> tuple[Names, NDArray[np.int64], NDArray[np.uint8]] | None:
        """Names, trusted stamps and sums of a folder's files on this node."""
        self._run("update folders set used = ? where folder = ? and node = ?", (time.time(), folder, platform.node()))
        rows = self._run("select names, ends, stamps, sums from folders where folder = ? and node = ?",
                         (folder, platform.node()))  # fmt: skip
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
        """Keep what is known of a folder's files."""
        blobs = (names.block.tobytes(), names.ends.tobytes(), stamps.tobytes(), sums.tobytes())
        self._run("insert or replace into folders values (?, ?, ?, ?, ?, ?, ?)",
                  (folder, platform.node(), time.time(), *blobs))  # fmt: skip
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
    """Size, mtime_ns and ctime_ns of a file; (-1, 0, 0) where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  # a million of them
    except (OSError, ValueError):  # absent, or a name that no file can have
        return -1, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_sum(path: str) -> bytes | None:
    """SHA-256 of a file; None when it cannot be read."""
    try:
        return bytes.fromhex(sha256_of(path))
    except (OSError, ValueError):
        return None


def read_contents_of(
    folder: Path, names: Names, cache: ContentCache | None, what: str, deadline: float | None, part: str = ""
) -> Contents:
    """Find out sizes, times and sums of files; only those that the cache does not know by size and times are read.

    Args:
        folder: that the names are relative to.
        names: of the files, in order.
        cache: where sums are kept; also when time is up or the work is interrupted.
        what: begins lines on progress, as `data.train`.
        deadline: `time.monotonic()`; None: as long as it takes.
        part: of the data set; parts in the same folder are kept by themselves.

    Raises:
        OutOfTime: the deadline has passed.
    """
    key = f"{folder}#{part}"
    progress = Progress(f"{what}: names and sizes", len(names), "files", deadline)
    found = np.concatenate([np.zeros((0, 3), np.int64), *_stamps(folder, names, progress)])
    stamps, sums = _known(names, found, cache.load(key) if cache else None)
    unknown = np.flatnonzero((stamps[:, 2] == 0) & (found[:, 0] >= 0))
    if len(unknown):
        total = float(found[unknown, 0].sum()) / 2**20
        progress = Progress(f"{what}: hashing {len(unknown):,} files", total, "MiB", deadline)
        try:
            _hash(folder, names, unknown, found, stamps, sums, progress, cache, key)
        finally:
            if cache:
                cache.save(key, names, stamps, sums)
        seconds = time.monotonic() - progress.started
        if seconds > 1:
            print(f"{what}: hashed {len(unknown):,} files, {total:,.4g} MiB, in {seconds:.1f} s", flush=True)
    return Contents(stamps, found[:, 0].copy(), sums)


def _parts(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def _stamps(folder: Path, names: Names, progress: Progress) -> list[NDArray[np.int64]]:
    """Size and times of all files, in parts."""

    def of(part: range) -> NDArray[np.int64]:
        found = np.array([file_stamp(f"{folder}/{names[i]}") for i in part], np.int64)
        progress.add(len(part))
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(of, _parts(len(names), 4096)))


def _known(
    names: Names, found: NDArray[np.int64], kept: tuple[Names, NDArray[np.int64], NDArray[np.uint8]] | None
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Trusted stamps and sums of files that are as they were; zeros for the others."""
    stamps, sums = np.zeros_like(found), np.zeros((len(names), SUM_BYTES), np.uint8)
    if kept is None or not len(names):
        return stamps, sums
    old_names, old_stamps, old_sums = kept
    if names == old_names:
        new = old = np.arange(len(names))
    else:
        rows = {old_names.encoded(i): i for i in range(len(old_names))}
        pairs = [(i, rows[name]) for i in range(len(names)) if (name := names.encoded(i)) in rows]
        new, old = np.array(pairs, np.int64).reshape(-1, 2).T
    same = (found[new] == old_stamps[old]).all(axis=1)
    stamps[new[same]], sums[new[same]] = old_stamps[old[same]], old_sums[old[same]]
    return stamps, sums


def _hash(
    folder: Path,
    names: Names,
    unknown: NDArray[np.int64],
    found: NDArray[np.int64],
    stamps: NDArray[np.int64],
    sums: NDArray[np.uint8],
    progress: Progress,
    cache: ContentCache | None,
    key: str,
) -> None:
    """Fill in sums, and stamps where they can be trusted."""

    def hash_part(part: range) -> None:
        for row in unknown[part.start : part.stop].tolist():
            before = time.time_ns()
            content = content_sum(f"{folder}/{names[row]}")
            if content is not None:
                sums[row] = np.frombuffer(content, np.uint8)
                if _is_settled(tuple(found[row].tolist()), before):
                    stamps[row] = found[row]
            progress.add(float(found[row, 0]) / 2**20)

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


def _is_settled(found: tuple[int, ...], before_ns: int) -> bool:
    """By the time of the last change of the file itself, which nobody can set, as they can that of its contents."""
    return found[2] < before_ns - SETTLED_NS
