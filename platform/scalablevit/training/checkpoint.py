"""Checkpoints that are complete or do not count: safetensors and JSON in a folder; a manifest of sums comes last."""

import hashlib
import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow.fs
import safetensors.torch

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Keep
from scalablevit.run_files import CHECKPOINTS, MANIFEST, STATE
from scalablevit.training.state import Snapshot
from scalablevit.training.storage import open_filesystem, put, read

RETRY_PAUSES_S = (1.0, 4.0, 15.0)
"""Pauses in seconds before a read that failed is tried again (a busy object store, a mount that hangs)."""
_FOLDER = re.compile(r"step_(\d{9})-[0-9a-f]{8}")

logger = logging.getLogger(__name__)


class DamagedCheckpoint(Exception):
    """A checkpoint whose files do not match the SHA-256 sums of its manifest."""


@dataclass(frozen=True)
class Entry:
    """A checkpoint that has a manifest; its files are not yet verified."""

    name: str
    """Name of the checkpoint's folder."""
    step: int
    """Optimizer steps done."""
    value: float | None
    """Score of the evaluation at this step, higher is better; None: it was not evaluated."""
    written: float
    """Time of writing, seconds since the epoch."""
    unreadable: str = ""
    """Why storage does not give the manifest, so that `value` and `written` are not known; empty: it does."""


class FileSum(TypedDict):
    """The entry of a file in a manifest."""

    sha256: str
    bytes: int


class Manifest(TypedDict):
    """Content of `MANIFEST`."""

    version: int
    step: int
    """Optimizer steps done."""
    value: float | None
    """Score of the evaluation at this step, higher is better; None when there was none."""
    written: float
    """Time of writing, seconds since the epoch."""
    files: dict[str, FileSum]
    """Entry of each file by its name in the checkpoint's folder."""
    sha256: NotRequired[str]
    """SHA-256 of the other entries; missing in version 1."""


class _UnreadableBest(UserError):
    """Storage does not give the best checkpoint."""


class CheckpointStore:
    """The checkpoints of one run, in `<run folder>/checkpoints` on any pyarrow file system.

    Args:
        run_folder: the run's folder in run storage, path or address.
    """

    def __init__(self, run_folder: str) -> None:
        self.filesystem, root = open_filesystem(run_folder)
        self.folder = f"{root}/{CHECKPOINTS}"
        self.passed_over: dict[str, str] = {}
        """Why `newest` did not use newer checkpoints, by name; this store never deletes them."""

    def write(self, snapshot: Snapshot, value: float | None) -> str:
        """Write a checkpoint; it exists from the moment its manifest does.

        Args:
            snapshot: the state to store.
            value: score of the evaluation at this step, higher is better; None when there was none.

        Returns:
            The folder's name.
        """
        name = f"step_{snapshot.step:09d}-{secrets.token_hex(4)}"
        folder = f"{self.folder}/{name}"
        try:
            self.filesystem.create_dir(folder, recursive=True)
            files = {f"{stem}.safetensors": safetensors.torch.save(t) for stem, t in snapshot.files.items()}
            files[STATE] = json.dumps(snapshot.meta).encode()
            sums: dict[str, FileSum] = {}
            for file, content in files.items():
                self._put(f"{folder}/{file}", content)
                sums[file] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            written = time.time()  # object stores have no modification time of a folder
            manifest: Manifest = {
                "version": 2,
                "step": snapshot.step,
                "value": value,
                "written": written,
                "files": sums,
            }
            manifest["sha256"] = _own_sum(manifest)
            self._put(f"{folder}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
        except BaseException:
            self._remove(name)
            raise
        return name

    def entries(self) -> list[Entry]:
        """Return the checkpoints with a manifest, oldest first (by step, then time of writing)."""
        entries = []
        for name in self._folders():
            try:
                content = self._get(f"{self.folder}/{name}/{MANIFEST}")
                if content is None:
                    continue
                manifest = _parse_manifest(content)
                entries.append(Entry(name, int(manifest["step"]), manifest["value"], float(manifest["written"])))
            except (ValueError, KeyError, TypeError, OSError) as error:
                # it counts as a checkpoint that existed: `newest` must not take this for a fresh start
                logger.warning("checkpoint %s: manifest not readable (%s)", name, error)
                unreadable = str(error) if isinstance(error, OSError) else ""
                entries.append(Entry(name, _step_of(name), None, 0.0, unreadable))
        return sorted(entries, key=lambda entry: (entry.step, entry.written, entry.name))

    def read(self, name: str) -> Snapshot:
        """Return a checkpoint's content, every file checked against its SHA-256.

        Args:
            name: name of the checkpoint's folder.

        Raises:
            DamagedCheckpoint: a file is missing or has another sum; the message has both sums.
        """
        folder = f"{self.folder}/{name}"
        contents = self._read_checked(folder)
        meta = json.loads(contents.pop(STATE))
        files = {Path(file).stem: safetensors.torch.load(content) for file, content in contents.items()}
        if f"step_{meta['step']:09d}" != name[:14]:
            raise DamagedCheckpoint(f"{folder}: holds step {meta['step']}")
        return Snapshot(meta["step"], files, meta)

    def newest(self, at_most: int | None = None) -> tuple[str, Snapshot] | None:
        """Return name and content of the newest checkpoint that is whole; None when there is no checkpoint.

        Those passed over, damaged or not given by storage, are in `passed_over` afterwards. A read that fails is tried
        again after `RETRY_PAUSES_S`.

        Args:
            at_most: for a training that goes back: the most steps done. What it passed over before stays passed over;
                it may be readable again, but this training has gone another way. None: a training starts.

        Raises:
            UserError: none is whole, or none may be read: to start from the beginning would hide the loss.
            OSError: none is whole, and storage does not give one of them: it may with new workers.
        """
        earlier = {} if at_most is None else self.passed_over
        self.passed_over = dict(earlier)
        pauses = iter(RETRY_PAUSES_S)
        failures: list[OSError] = []
        for entry in reversed(self.entries()):
            if entry.name in earlier or (at_most is not None and entry.step > at_most):
                continue
            try:
                return entry.name, self.read_patiently(entry.name, pauses)
            except (DamagedCheckpoint, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                self.passed_over[entry.name] = str(error)
            except OSError as error:
                failures.append(error)
                self.passed_over[entry.name] = f"cannot be read: {error}"
            logger.warning("checkpoint %s is not used: %s", entry.name, self.passed_over[entry.name])
        if self.passed_over == earlier:
            return None
        raise self._none_usable(failures)

    def read_patiently(self, name: str, pauses: Iterator[float] | None = None) -> Snapshot:
        """Return a checkpoint's content; try again where storage does not give it, unless permissions are missing.

        Args:
            name: of the checkpoint.
            pauses: seconds to wait before each further try; None: `RETRY_PAUSES_S`.

        Raises:
            DamagedCheckpoint, OSError: as `read`.
        """
        pauses = iter(RETRY_PAUSES_S) if pauses is None else pauses
        while True:
            try:
                return self.read(name)
            except OSError as error:
                pause = None if _is_denied(error) else next(pauses, None)
                if pause is None:
                    raise
                logger.warning("checkpoint %s cannot be read (%s); it is tried again in %g s", name, error, pause)
                time.sleep(pause)

    def _none_usable(self, failures: list[OSError]) -> UserError | OSError:
        """Return the error of a run without a usable checkpoint, whose reads failed with these errors, if any."""
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in self.passed_over.items())
        if not failures:
            return UserError(
                f"every checkpoint of this run is damaged:{reasons}",
                where=self.folder,
                fix="restore the folder from a copy, or move it away to train from the start",
            )
        what = (
            f"no checkpoint of this run can be used, and {len(failures)} of {len(self.passed_over)} cannot be read:"
            f"{reasons}"
        )
        if not all(map(_is_denied, failures)):
            return OSError(f"{self.folder}: {what}")
        return UserError(
            what,
            where=self.folder,
            fix="make them readable (permissions, the disk, the mount), and give the same command again",
        )

    def note_on_passed_over(self, step: int) -> str:
        """Return a sentence about the newer checkpoints that are not used; empty if there are none.

        Args:
            step: optimizer steps done at the checkpoint that is used.
        """
        if not self.passed_over:
            return ""
        again = max(map(_step_of, self.passed_over)) - step
        reasons = "; ".join(f"{name}: {' '.join(reason.split())}" for name, reason in self.passed_over.items())
        return f"{again} steps are done again, since newer checkpoints are not used ({reasons})"

    def best(self, step: int | None = None) -> Entry | None:
        """Return the undamaged checkpoint with the highest value, the earliest of equal ones; None without any value.

        One that cannot be read is not replaced by the next: it is tried again after `RETRY_PAUSES_S`, and may be
        readable tomorrow.

        Args:
            step: step of the best evaluation; None: it is not known.

        Raises:
            UserError: all checkpoints with a value are damaged, or the best one cannot be read.
        """
        for pause in RETRY_PAUSES_S:
            try:
                return self._best(step)
            except _UnreadableBest as unreadable:
                if _is_denied(unreadable.__cause__ or unreadable):
                    break
                logger.warning("%s; it is tried again in %g s", unreadable.what, pause)
                time.sleep(pause)
        return self._best(step)

    def _best(self, step: int | None) -> Entry | None:
        entries = self.entries()
        valued = sorted((e for e in entries if e.value is not None), key=_best_first)
        for entry in entries:
            if entry.unreadable and entry.step == step and all(other.step != step for other in valued):
                raise self._unreadable_best(entry.name, entry.unreadable)
        reasons = []
        for entry in valued:
            try:
                self._read_checked(f"{self.folder}/{entry.name}")
            except OSError as error:
                raise self._unreadable_best(entry.name, str(error)) from error
            except DamagedCheckpoint as error:
                logger.warning("checkpoint %s with value %s is not used: %s", entry.name, entry.value, error)
                reasons.append(f"{entry.name}: {error}")
            else:
                return entry
        if reasons:
            raise UserError(
                "every evaluated checkpoint of this run is damaged:\n  " + "\n  ".join(reasons),
                where=self.folder,
                fix="restore the folder from a copy, or move it away to train from the start",
            )
        return None

    def _unreadable_best(self, name: str, why: str) -> "_UnreadableBest":
        return _UnreadableBest(
            f"the best checkpoint, {name}, cannot be read: {why}",
            where=self.folder,
            fix="make it readable, or move its folder away for the next best to be exported; then give the same "
            "command again",
        )

    def verified_file(self, name: str, file: str) -> bytes:
        """Return the content of one file of a checkpoint, checked against its SHA-256.

        Args:
            name: name of the checkpoint's folder.
            file: name of the file in it.

        Raises:
            DamagedCheckpoint: the file is missing or has another sum; the message has both sums.
        """
        folder = f"{self.folder}/{name}"
        return self._check_sum(folder, file, self._sums(folder).get(file, ""))

    def prune(self, keep: Keep) -> None:
        """Delete all but the newest and the best checkpoints; of several at one step only the newest can stay.

        Those that are passed over or cannot be read stay, and do not count: a newer step that is of no use must not
        take the place of those that a training writes which has gone back behind it.

        Args:
            keep: how many of the newest and of the best to keep.
        """
        usable = self.usable()
        newest_of_step = {entry.step: entry for entry in usable}
        entries = sorted(newest_of_step.values(), key=lambda entry: entry.step)
        valued = sorted((e for e in entries if e.value is not None), key=_best_first)
        kept = {entry.name for entry in (*entries[-keep.last :], *valued[: keep.best])}
        for entry in usable:
            if entry.name not in kept:
                self._remove(entry.name)

    def usable(self) -> list[Entry]:
        """Return the checkpoints that are not passed over and whose manifest can be read, oldest first."""
        return [entry for entry in self.entries() if not entry.unreadable and entry.name not in self.passed_over]

    def remove_incomplete(self) -> None:
        """Delete folders without a manifest, left by an attempt that was killed; only the run's owner may call it."""
        complete = {entry.name for entry in self.entries()}
        for name in self._folders():
            if name not in complete:
                self._remove(name)

    def remove_all(self) -> None:
        """Delete every checkpoint; only the run's owner may call it, once nothing will continue from them."""
        for name in self._folders():
            self._remove(name)

    def check_space(self, nbytes: int, keep: Keep) -> None:
        """Check before training that the checkpoints will fit on a local disk; remote storage is not checked.

        Args:
            nbytes: size of one checkpoint, bytes.
            keep: how many of the newest and of the best are kept.

        Raises:
            UserError: they will not fit; the message has the calculation.
        """
        if not isinstance(self.filesystem, pyarrow.fs.LocalFileSystem):
            return
        self.filesystem.create_dir(self.folder, recursive=True)
        existing = len(self.usable())
        needed = max(0, keep.last + keep.best + 1 - existing) * nbytes
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise UserError(
                f"checkpoints need {needed / 2**20:.0f} MiB ({keep.last} last + {keep.best} best + 1 being written, "
                f"{nbytes / 2**20:.0f} MiB each, {existing} there) and {free / 2**20:.0f} MiB are free",
                where=self.folder,
                fix="free space, set cluster.storage elsewhere, or lower training.keep",
            )

    def _read_checked(self, folder: str) -> dict[str, bytes]:
        """Return the content of all files of a checkpoint, checked against the manifest's sums."""
        return {file: self._check_sum(folder, file, sha256) for file, sha256 in self._sums(folder).items()}

    def _sums(self, folder: str) -> dict[str, str]:
        """Return the SHA-256 of each file, by the checkpoint's manifest."""
        manifest = self._get(f"{folder}/{MANIFEST}")
        if manifest is None:
            raise DamagedCheckpoint(f"{folder}: no {MANIFEST}")
        try:
            return {file: str(expected["sha256"]) for file, expected in _parse_manifest(manifest)["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCheckpoint(f"{folder}/{MANIFEST} is not readable: {error!r}") from error

    def _check_sum(self, folder: str, file: str, expected: str) -> bytes:
        if "/" in file:
            raise DamagedCheckpoint(f"{folder}: {file!r} leaves the folder")
        content = self._get(f"{folder}/{file}")
        if content is None:
            raise DamagedCheckpoint(f"{folder}/{file} is missing")
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise DamagedCheckpoint(f"{folder}/{file}: expected sha256 {expected or 'none'}, found {actual}")
        return content

    def _folders(self) -> list[str]:
        """Return the names of the checkpoints' folders."""
        selector = pyarrow.fs.FileSelector(self.folder, allow_not_found=True)
        names = [info.base_name for info in self.filesystem.get_file_info(selector)]
        return [name for name in names if _FOLDER.fullmatch(name)]

    def _put(self, path: str, content: bytes) -> None:
        put(self.filesystem, path, content)

    def _get(self, path: str) -> bytes | None:
        return read(self.filesystem, path)

    def _remove(self, name: str) -> None:
        """Delete a checkpoint, its manifest first, so that a partly deleted one does not count."""
        folder = f"{self.folder}/{name}"
        if self.filesystem.get_file_info(f"{folder}/{MANIFEST}").type == pyarrow.fs.FileType.File:
            self.filesystem.delete_file(f"{folder}/{MANIFEST}")
        if self.filesystem.get_file_info(folder).type == pyarrow.fs.FileType.Directory:
            self.filesystem.delete_dir(folder)


class BackgroundWriter:
    """Writes snapshots in a thread, one at a time; training continues after the copy to the CPU.

    Args:
        store: the run's checkpoints.
        keep: how many of the newest and of the best to keep.
    """

    def __init__(self, store: CheckpointStore, keep: Keep) -> None:
        self.store = store
        self.keep = keep
        self.failed: str | None = None
        """Why the last write failed; None when it did not."""
        self.failures: dict[int, str] = {}
        """Why a write failed, by the step that was not written."""
        self._thread: threading.Thread | None = None

    def submit(self, snapshot: Snapshot, value: float | None) -> None:
        """Start to write a snapshot, after the previous write has ended.

        Args:
            snapshot: the state to store.
            value: score of the evaluation at this step, higher is better; None when there was none.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(snapshot, value), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot, value: float | None) -> None:
        try:
            self.store.write(snapshot, value)
            self.store.prune(self.keep)
            self.failed = None
        except Exception as error:  # a full disk must not end training while the previous checkpoint is complete
            self.failed = self.failures[snapshot.step] = (
                f"checkpoint at step {snapshot.step} was not written: {type(error).__name__}: {error}"
            )
            logger.error("%s", self.failed)

    def missing_best(self, best_step: int | None) -> str:
        """Return a message that the best evaluation's checkpoint is not stored; "" when it is, or when there is none.

        Args:
            best_step: step of the best evaluation; None: there was no evaluation.
        """
        stored = {entry.step for entry in self.store.usable() if entry.value is not None}
        if best_step is None or best_step in stored:
            return ""
        why = self.failures.get(best_step, f"training.keep.best is {self.keep.best}, or an earlier attempt failed")
        return f"the best evaluation's weights, of step {best_step}, are not stored ({why})"


def _is_denied(error: BaseException) -> bool:
    """Return whether storage refuses access; pyarrow's error for that of S3 has no number."""
    return isinstance(error, PermissionError) or "ACCESS_DENIED" in str(error)


def _step_of(name: str) -> int:
    """Return the step in the name of a checkpoint's folder."""
    return int(name[5:14])


def _own_sum(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's entries: a flipped bit in `value` would make another checkpoint the best."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _parse_manifest(content: bytes) -> Manifest:
    """Return a manifest, checked against its own sum, which version 1 does not have.

    Raises:
        ValueError, KeyError, TypeError: the manifest is damaged.
    """
    manifest: Manifest = json.loads(content)
    if manifest["version"] != 1:
        expected = manifest.pop("sha256")
        actual = _own_sum(manifest)
        if actual != expected:
            raise ValueError(f"expected sha256 {expected} of its entries, found {actual}")
    return manifest


def _best_first(entry: Entry) -> tuple[float, int, float]:
    """Return the sort key of an entry with a value: highest value first, then earlier step, then newest of a step."""
    return (-(entry.value or 0.0), entry.step, -entry.written)
