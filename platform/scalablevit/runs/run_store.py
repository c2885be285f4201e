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
"""Content of a JSON file of a run; only the code that reads the file knows its keys."""


@dataclass(frozen=True)
class RunStore:
    """The folder of one run: its place in run storage, and the one on the driver's disk."""

    name: str
    """The run's name."""
    location: str
    """The folder in run storage: a path or an address such as s3://bucket/folder."""
    local: Path
    """`<root>/runs/<name>` on the driver's disk: outbox, status, plots and reports. Equal to `location` only where
    `cluster.storage` is null."""

    @classmethod
    def open(cls, name: str, storage: str | None, root: Path) -> "RunStore":
        """Return the run's folder, created if it does not exist; for the arguments see `at`."""
        store = cls.at(name, storage, root)
        store.local.mkdir(parents=True, exist_ok=True)
        filesystem, path = run_storage.open_filesystem(store.location)
        filesystem.create_dir(path, recursive=True)
        return store

    @classmethod
    def at(cls, name: str, storage: str | None, root: Path) -> "RunStore":
        """Return the run's folder, whether it exists or not.

        Args:
            name: the run's name.
            storage: the recipe's `cluster.storage`; None: `<root>/runs`.
            root: the platform's root folder.

        Raises:
            UserError: the folder is inside a session folder of Ray, which is temporary.
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
        """Return the folder of the records on their way to MLflow, on the driver's disk."""
        return outbox_of(self.local)

    def read(self, file: str) -> bytes | None:
        """Return the content of a file in run storage; None when there is no such file."""
        filesystem, path = run_storage.open_filesystem(self.location)
        return run_storage.read(filesystem, f"{path}/{file}")

    def write(self, file: str, content: bytes) -> None:
        """Write a file to run storage, completely or not at all; create its folder."""
        filesystem, path = run_storage.open_filesystem(self.location)
        target = f"{path}/{file}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        run_storage.put(filesystem, target, content)

    def read_json(self, file: str) -> JsonObject | None:
        """Return a JSON object from run storage; None when there is no such file.

        Raises:
            UserError: the file is not a JSON object.
        """
        content = self.read(file)
        if content is None:
            return None
        try:
            value = json.loads(content)
            if not isinstance(value, dict):
                raise ValueError(f"a {type(value).__name__} in place of an object")
        except ValueError as error:
            raise UserError(
                f"not readable as JSON: {error}",
                where=f"{self.location}/{file}",
                fix="restore the file from a copy, or move the run's folder away to start again from the beginning",
            ) from None
        return value

    def write_json(self, file: str, value: JsonObject) -> None:
        """Write a JSON object to run storage."""
        self.write(file, json.dumps(value, indent=1).encode())
