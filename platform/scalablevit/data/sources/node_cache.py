"""Listings on a node's own disk, unpacked once and mapped by all of its processes."""

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
"""Names the cache's folder; without it one below the system's temporary folder."""
LARGEST = 8 * 2**30
"""Bytes of all listings on a node, above which those that nobody has opened for a day are removed."""
UNUSED_S = 86_400


def cache_folder() -> Path:
    """Return this user's cache folder on this node, whether it is there or not."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path(tempfile.gettempdir()) / f"scalablevit-{os.getuid()}"


def open_on_node(sha256: str, fetch: Callable[[], bytes]) -> Listing:
    """Return a packed listing, mapped from this node's cache where there is a disk for it.

    Args:
        sha256: of the packed listing.
        fetch: reads it; called only where the node does not have it yet.

    Raises:
        ValueError: it cannot be fetched, or what was fetched is another one.
    """

    def fetched() -> bytes:
        try:
            return _check_sum(fetch(), sha256)
        except OSError as error:  # of the storage; those of this node's disk are the cache's
            raise ValueError(f"it cannot be read: {error}") from error

    try:
        return _unpack(cache_folder(), sha256, fetched)
    except OSError as error:
        listing = Listing.unpack(fetched())
        size = sum(array.nbytes for array in listing.arrays.values()) / 2**20
        print(f"the cache {cache_folder()} cannot be used ({error}): this process keeps its own copy of the listing, "
              f"{size:.3g} MiB; {VARIABLE} names another folder", flush=True)  # fmt: skip
        return listing


def _unpack(cache: Path, sha256: str, fetch: Callable[[], bytes]) -> Listing:
    target = cache / "listings" / sha256
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.mkdir(mode=0o700, exist_ok=True)  # by itself: folders made on the way to another have the umask's mode
    _refuse_foreign(cache)
    target.parent.mkdir(mode=0o700, exist_ok=True)
    with _locked(cache / "lock"):
        try:
            listing = Listing.open(target)
        except (OSError, ValueError, KeyError, TypeError):
            # not there yet, or what removes old temporary files took some of it
            shutil.rmtree(target, ignore_errors=True)
            made = target.with_name(f".{sha256}.{uuid.uuid4().hex}")
            try:
                Listing.unpack(fetch()).save(made)
                made.rename(target)
            finally:
                shutil.rmtree(made, ignore_errors=True)
            listing = Listing.open(target)
        os.utime(target)
        _remove_unused(target)
    return listing


def _refuse_foreign(cache: Path) -> None:
    """Whoever else can write there could change what is trained."""
    found = cache.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{cache} is a link, another user's, or writable by others")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also by a kill
        yield


def _check_sum(content: bytes, sha256: str) -> bytes:
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise ValueError(f"the listing has the SHA-256 {found}, not {sha256}")
    return content


def _remove_unused(kept: Path) -> None:
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in kept.parent.iterdir()}
    newest = kept.stat().st_mtime
    for folder in sorted(sizes.keys() - {kept}, key=lambda folder: folder.stat().st_mtime):
        if sum(sizes.values()) > LARGEST and newest - folder.stat().st_mtime > UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
