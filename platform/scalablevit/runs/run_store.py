"""A run's folder: what is kept in run storage, and what stays on the driver's disk."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from scalablevit.config.errors import UserError
from scalablevit.config.root import refuse_session_folder
from scalablevit.run_files import RUNS
from scalablevit.tracking.outbox import outbox_of
from scalablevit.training import storage as run_storage

JsonObject: TypeAlias = dict[str, Any]
"""Content of a JSON file of a run, whose keys only the reader knows."""


@dataclass(frozen=True)
class RunStore:
    """Folder of one run, by name."""

    name: str
    location: str
    """In run storage: a path or an address."""
    local: Path
    """On the driver's disk: the outbox and readable files; the same folder when storage is local."""

    @classmethod
    def open(cls, name: str, storage: str | None, root: Path) -> "RunStore":
        """The run's folder, made if it is not there; the arguments are those of `at`."""
        store = cls.at(name, storage, root)
        store.local.mkdir(parents=True, exist_ok=True)
        filesystem, path = run_storage.open_filesystem(store.location)
        filesystem.create_dir(path, recursive=True)
        return store

    @classmethod
    def at(cls, name: str, storage: str | None, root: Path) -> "RunStore":
        """The run's folder, whether it is there or not.

        Args:
            name: the run's name.
            storage: `cluster.storage`; None: `<root>/runs`.
            root: the platform's root.
        """
        local = root / RUNS / name
        if storage is None:
            location = str(local)
        elif "://" in storage:
            location = f"{storage.rstrip('/')}/{name}"
        else:
            location = str((root / Path(storage).expanduser()).resolve() / name)
            refuse_session_folder(location, "cluster.storage")
        return cls(name, location, local)

    @property
    def outbox(self) -> Path:
        """Records on their way to MLflow, on the driver's disk."""
        return outbox_of(self.local)

    def read(self, file: str) -> bytes | None:
        """Content of a file in run storage; None when there is none."""
        filesystem, path = run_storage.open_filesystem(self.location)
        return run_storage.read(filesystem, f"{path}/{file}")

    def write(self, file: str, content: bytes) -> None:
        """Write a file to run storage, whole or not at all; subfolders are made."""
        filesystem, path = run_storage.open_filesystem(self.location)
        target = f"{path}/{file}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        run_storage.put(filesystem, target, content)

    def read_json(self, file: str) -> JsonObject | None:
        """A JSON object from run storage; None when the file is not there."""
        content = self.read(file)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            raise UserError(
                f"not readable as JSON: {error}",
                where=f"{self.location}/{file}",
                fix="restore the file from a copy, or move the run's folder away to start again from the beginning",
            ) from None
        return dict(value)

    def write_json(self, file: str, value: JsonObject) -> None:
        """Write a JSON object to run storage."""
        self.write(file, json.dumps(value, indent=1).encode())
