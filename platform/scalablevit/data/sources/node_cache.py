"""A cache of listings on a node's own disk: unpacked once, and memory-mapped by all processes of the node."""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scalablevit.data.sources.listing import Listing

VARIABLE = "SCALABLEVIT_CACHE"
"""Environment variable with the cache's folder; without it the cache is in the system's temporary folder."""
LARGEST = 8 * 2**30
"""Bytes of all listings on a node above which those that are unused for `UNUSED_S` are removed."""
UNUSED_S = 86_400
"""Seconds."""


def cache_folder() -> Path:
    """Return this user's cache folder on this node, which may not exist yet."""
    configured = os.environ.get(VARIABLE)
    return Path(configured).expanduser() if configured else Path(tempfile.gettempdir()) / f"scalablevit-{os.getuid()}"


def open_on_node(sha256: str, fetch: Callable[[], bytes]) -> Listing:
    """Return a listing, memory-mapped from this node's cache; in memory if the cache cannot be used.

    Args:
        sha256: of the packed listing, in hexadecimal.
        fetch: returns the packed listing; called only where the node does not have it yet.

    Raises:
        ValueError: it cannot be fetched, or has another SHA-256.
    """

    def fetch_checked() -> bytes:
        try:
            return _check_sum(fetch(), sha256)
        except OSError as error:  # of the storage; errors of this node's disk are handled below
            raise ValueError(f"it cannot be read: {error}") from error

    try:
        return _unpack(cache_folder(), sha256, fetch_checked)
    except OSError as error:
        listing = Listing.unpack(fetch_checked())
        size = sum(array.nbytes for array in listing.arrays.values()) / 2**20
        print(f"the cache {cache_folder()} cannot be used ({error}): this process keeps its own copy of the listing, "
              f"{size:.3g} MiB; {VARIABLE} names another folder", flush=True)  # fmt: skip
        return listing


def _unpack(cache: Path, sha256: str, fetch: Callable[[], bytes]) -> Listing:
    target = cache / "listings" / sha256
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(mode=0o700, exist_ok=True)  # by itself: `parents=True` creates parents with the umask's mode
    _refuse_foreign(cache)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with _locked(cache / "lock"):
        try:
            listing = Listing.open(target)
        except (OSError, ValueError, KeyError, TypeError):
            # not there yet, or a cleaner of temporary files has removed a part
            shutil.rmtree(target, ignore_errors=True)
            partial = target.with_name(f".{sha256}.{uuid.uuid4().hex}")
            try:
                Listing.unpack(fetch()).save(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            listing = Listing.open(target)
        os.utime(target)
        _remove_unused(target)
    return listing


def _refuse_foreign(cache: Path) -> None:
    """Refuse a folder that others can write to: they could change what is trained on."""
    status = cache.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{cache} is a link, another user's, or writable by others")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed, also by a kill
        yield


def _check_sum(content: bytes, sha256: str) -> bytes:
    if (actual := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"the listing has the SHA-256 {actual}, not {sha256}")
    return content


def _remove_unused(kept: Path) -> None:
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in kept.parent.iterdir()}
    newest = kept.stat().st_mtime
    for folder in sorted(sizes.keys() - {kept}, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) > LARGEST and newest - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
