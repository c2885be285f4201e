"""Access to MLflow: valid addresses, bounded requests, secrets kept out of messages, and what an error means."""

import logging
import os
import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.root import is_default_tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient

Verdict = Literal["away", "refused", "unclear"]
"""What an error says of a record: try again later, never send it again, or unknown."""

# 401 and 403 concern our credentials, the others are temporary: the same record may be accepted later.
TRY_AGAIN = {401, 403, 408, 409, 425, 429, 499}
# At an upload; a proxy whose server is being replaced responds with these, too.
NO_SUCH_PAGE = {404, 405}
MESSAGE_LENGTH = 400
"""Most characters of an error's message."""
SQLITE = "sqlite://"
SECRET_VARIABLES = re.compile(r"token|secret|passw|api_?key|access_?key|credential", re.IGNORECASE)
"""Names of environment variables whose values are never shown, unless they are paths."""
UNSAFE = re.compile(r"[\s/?#'\"\\\[\]]")
"""Characters that must be encoded in the user name and password of an address."""
RESPONSE_S = 10
"""Longest wait, in seconds, for the response to a request that asks only whether the server is there."""
SHORTEST_SECRET = 6
"""Fewest characters of a secret to mask: masking a shorter value would damage ordinary words."""

_environment_lock = threading.RLock()


class Refused(Exception):
    """MLflow will never accept this record as it is."""


class Away(Exception):
    """MLflow cannot take this record now; it may accept it later."""


def check_uri(uri: str) -> None:
    """Refuse an address under which MLflow would lose data.

    Raises:
        UserError: the address has a relative SQLite path (a job's current folder vanishes), names a store without a
            place for artifacts, has a query, which MLflow's client would put into the middle of its requests' addresses
            and into its logs, names no server, or has a password with characters that end it early.
    """
    fix = "use http(s)://<server>, or sqlite:////<absolute path>/mlflow.db"
    file = sqlite_file(uri)
    if file is not None:
        if not file.is_absolute():
            raise UserError(
                f"{without_credentials(uri)} is relative to the current folder", where="tracking.uri", fix=fix
            )
        return
    user, _, _ = uri.partition("://")[2].rpartition("@")
    if ":" in user and UNSAFE.search(user):
        raise UserError(
            f"{without_credentials(uri)}: the user name or password holds a character that has to be encoded",
            where="tracking.uri",
            fix="write %2F for /, %20 for a space, %27 for ', %22 for \", %3F for ?, %23 for #",
        )
    try:
        parts = urlsplit(uri)
        no_host = parts.scheme in ("http", "https") and (not parts.hostname or parts.port == 0)
    except ValueError:
        raise UserError(f"{without_credentials(uri)} is no address", where="tracking.uri", fix=fix) from None
    if parts.scheme not in ("http", "https"):
        raise UserError(f"{without_credentials(uri)} cannot be written to", where="tracking.uri", fix=fix)
    if no_host:
        raise UserError(f"{without_credentials(uri)} names no server", where="tracking.uri", fix=fix)
    if parts.query or parts.fragment:
        raise UserError(f"{without_credentials(uri)} is followed by a query", where="tracking.uri", fix=fix)


def check_exists(uri: str, purpose: str) -> None:
    """Refuse an address from which nothing can be read, before MLflow creates a missing SQLite file.

    Args:
        uri: MLflow's address.
        purpose: what the caller wants to read, for the error.

    Raises:
        UserError: as `check_uri`, or the SQLite file does not exist.
    """
    check_uri(uri)
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(
            f"{purpose}: there is no file {file}",
            where="tracking.uri",
            fix="name the --root that the models were trained under, or their server (tracking.uri=http://...)",
        )


def check_response(uri: str) -> str:
    """Ask MLflow for an experiment at an address that `check_uri` takes, and return what it is, in words.

    Raises:
        UserError: it does not respond, or refuses us.
    """
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return "no file yet: the first run makes it"
    try:
        with bounded_requests(RESPONSE_S):
            connect(uri).search_experiments(max_results=1)
    except Exception as error:  # whatever MLflow, its database or the network raises
        raise UserError(
            f"MLflow does not respond as it should: {format_error(error, uri)}",
            where=f"tracking.uri={without_credentials(uri)}",
            fix="start the server, or correct address, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; until "
            "then trainings keep their records, and `sync` sends them",
        ) from None
    return "responds"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite address as SQLAlchemy opens it; None for any other address.

    Its path is no URL's: `#` has no meaning there, `%41` is an A, and `?` begins the options.
    """
    if not uri.startswith(SQLITE):
        return None
    return Path(unquote(uri.removeprefix(SQLITE).partition("?")[0].partition("/")[2]))


def without_credentials(uri: str) -> str:
    """Return the address without user, password and query: this form may be shown and stored."""
    if uri.startswith(SQLITE):
        host, slash, path = uri.removeprefix(SQLITE).partition("?")[0].partition("/")
        return f"{SQLITE}{host.rpartition('@')[2]}{slash}{path}"
    return re.split(r"[?#]", mask_credentials(uri), maxsplit=1)[0].replace("***@", "", 1)


def tracking_override(uri: str, root: Path) -> str:
    """Return ` tracking.uri=...` for a printed command, quoted; empty where the root alone leads to the address.

    Args:
        uri: MLflow's address; its credentials are not printed.
        root: the platform's root folder, which the command is given or finds by itself.
    """
    return "" if is_default_tracking(uri, root) else f" {shlex.quote(f'tracking.uri={without_credentials(uri)}')}"


def mask(text: str, uri: str) -> str:
    """Return `text` with `***` in place of the secrets of `uri`, of the environment and of any address in it."""
    password = urlsplit(uri).password or ""
    environment = {
        value
        for name, value in os.environ.items()
        if SECRET_VARIABLES.search(name) and len(value) >= SHORTEST_SECRET and not value.startswith("/")
    }
    for secret in sorted(({password, unquote(password)} | environment) - {""}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return mask_credentials(text)


def format_error(error: Exception, uri: str) -> str:
    """Return an error's message on one line of at most `MESSAGE_LENGTH` characters, without secrets."""
    return mask(" ".join(str(error).split()), uri)[:MESSAGE_LENGTH] or type(error).__name__


def artifact_location(uri: str) -> str | None:
    """Return where a new experiment keeps its artifacts: next to an SQLite file; None: where the server decides.

    MLflow's default for an SQLite file is the current folder.
    """
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "mlartifacts").as_uri()


def connect(uri: str) -> "MlflowClient":
    """Return a client for tracking and registry at `uri`; imports mlflow (seconds) and keeps its global address as is.

    MLflow's usage reports to its makers are switched off unless MLFLOW_DISABLE_TELEMETRY is set by the user.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # MLflow's "View run" lines, which would come between ours
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # This logger prints a traceback for every failed attempt; the caller reports the error once.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def bounded_requests(timeout_s: int, retries: int = 0) -> Iterator[None]:
    """Limit the time of HTTP requests in the block to (retries + 1) * timeout_s seconds, plus back-off between retries.

    MLflow's defaults are 120 s and 7 retries, and it reads them from the process's environment at every request: they
    are set here and restored afterwards, one thread at a time, so that two do not restore each other's values.

    Args:
        timeout_s: seconds that one attempt of a request may take.
        retries: attempts after the first one.
    """
    settings = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    with _environment_lock:
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def classify_error(error: Exception) -> Verdict:
    """Return whether the server is away, refuses the record for good, or the error alone does not tell."""
    import requests
    from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, (Refused, UserError)):
        return "refused"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
        return "unclear" if status in NO_SUCH_PAGE else _classify_status(status)
    # Any OSError: a record's own files are checked before it is sent (`mlflow_writer.check_readable`), so one that is
    # missing here is the server's, such as a folder of artifacts that is not mounted at the moment.
    if isinstance(error, (Away, OSError, OperationalError)):
        return "away"
    if isinstance(error, MlflowException):
        # An unknown endpoint is the response of a proxy, not of MLflow; BAD_REQUEST has many causes, among them every
        # database error.
        if error.error_code == "ENDPOINT_NOT_FOUND":
            return "away"
        if error.error_code == "BAD_REQUEST":
            return "unclear"
        return _classify_status(ERROR_CODE_TO_HTTP_STATUS.get(error.error_code, 500))
    return "unclear"


def _classify_status(status: int) -> Verdict:
    return "refused" if 400 <= status < 500 and status not in TRY_AGAIN else "away"
