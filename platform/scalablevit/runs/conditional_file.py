"""A file of an object store that changes by conditional writes alone: of several writers at once exactly one wins."""

import secrets
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pyarrow.fs

from scalablevit.training.storage import open_filesystem, read

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import AzureConfig, ClientConfig, ObjectStore, RetryConfig, S3Config

LIMIT = timedelta(seconds=10)
"""Longest wait for an answer of the store, of which the lease's owner needs one every few seconds."""


class ConditionalFile:
    """A file in an object store, which pyarrow cannot write under a condition; S3, Google Cloud Storage or Azure.

    Args:
        folder: address of its folder.
        name: of the file.

    Raises:
        OSError: the store refuses or ignores conditions, or is another one than pyarrow finds by the same variables.
    """

    def __init__(self, folder: str, name: str) -> None:
        filesystem, path = open_filesystem(folder)
        self._store = open_store(folder, filesystem, path)
        self._name = name
        self._try_conditions(filesystem, path)

    def swap(self, may: Callable[[bytes | None], bool], content: Callable[[], bytes]) -> bool:
        """Write new content where the present one permits it; return whether it did.

        Args:
            may: whether the present content may be replaced; None: there is no file.
            content: returns the new content.

        Raises:
            OSError: the store does not answer, or refuses to.
        """
        while True:
            present, version = self._read(self._name)
            if not may(present):
                return False
            if self._put(self._name, content(), version):
                return True

    def _try_conditions(self, filesystem: pyarrow.fs.FileSystem, path: str) -> None:
        """Refuse a store that takes a write whose condition does not hold: some ignore what they do not know."""
        probe = f".probe-{secrets.token_hex(8)}"
        try:
            created = self._put(probe, b"1", None), self._put(probe, b"2", None)
            if read(filesystem, f"{path}/{probe}") is None:
                raise OSError("obstore writes to another store than pyarrow by the same variables")
            _, version = self._read(probe)
            updated = self._put(probe, b"3", version), self._put(probe, b"4", version)
        finally:
            with suppress(OSError):
                filesystem.delete_file(f"{path}/{probe}")
        if (created, updated) != ((True, False), (True, False)):
            raise OSError("the store ignores the conditions of writes")

    def _read(self, name: str) -> "tuple[bytes | None, UpdateVersion | None]":
        import obstore
        from obstore.exceptions import BaseError

        try:
            found = obstore.get(self._store, name)
            version: UpdateVersion = {}
            if tag := found.meta["e_tag"]:
                version["e_tag"] = tag
            if number := found.meta["version"]:
                version["version"] = number
            return bytes(found.bytes()), version
        except FileNotFoundError:
            return None, None
        except BaseError as error:
            raise _as_os_error(error) from None

    def _put(self, name: str, content: bytes, version: "UpdateVersion | None") -> bool:
        """Write a file if it still is of this version, or does not exist (None); return whether it was."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            obstore.put(self._store, name, content, mode="create" if version is None else version, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except (BaseError, FileNotFoundError) as error:
            if version is not None and isinstance(error, FileNotFoundError):
                return False  # it was deleted; else there is no such bucket
            raise _as_os_error(error) from None
        return True


def open_store(location: str, filesystem: pyarrow.fs.FileSystem, path: str) -> "ObjectStore":
    """Return obstore's view of a location; only the creation of it, no request.

    Args:
        location: the address.
        filesystem: pyarrow's view of it.
        path: the location's path on that.

    Raises:
        OSError: it is no object store.
    """
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    kind = filesystem.type_name
    client: ClientConfig = {"allow_http": True, "timeout": LIMIT, "connect_timeout": LIMIT}
    retry: RetryConfig = {"max_retries": 2, "retry_timeout": LIMIT}
    try:
        if kind == "s3":  # pyarrow asks the bucket for its region
            region: S3Config = {"region": filesystem.region}
            return from_url(f"s3://{path}", config=region, client_options=client, retry_config=retry)
        if kind == "gcs":
            return from_url(f"gs://{path}", client_options=client, retry_config=retry)
        if kind == "abfs":
            account: AzureConfig = {"account_name": (urlsplit(location).hostname or "").partition(".")[0]}
            return from_url(f"az://{path}", config=account, client_options=client, retry_config=retry)
    except (BaseError, ValueError) as error:
        raise _as_os_error(error) from None
    raise OSError(f"{kind} is no object store")


def _as_os_error(error: Exception) -> OSError:
    """Return an error as pyarrow would raise one, without the response and the lines on obstore's inside."""
    return OSError((str(error) or repr(error)).splitlines()[0].partition(": <?xml")[0])
