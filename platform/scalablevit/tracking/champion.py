"""Reads and moves the aliases candidate and champion of a registered model; reads and writes tags of its versions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from scalablevit.config.errors import UserError
from scalablevit.tracking.connection import bounded_requests, check_exists, connect, format_error, without_credentials

CANDIDATE, CHAMPION = "candidate", "champion"
REQUEST_TIMEOUT_S, REQUEST_RETRIES = 30, 2
"""Seconds and retries of one request, see `bounded_requests`."""


def aliases(uri: str, name: str) -> dict[str, int]:
    """Return the version number by alias of a registered model.

    Raises:
        UserError: there is no such model, or the server does not respond.
    """
    with _short_requests(uri, name):
        return {alias: int(number) for alias, number in connect(uri).get_registered_model(name).aliases.items()}


def tags_of(uri: str, name: str, version: int) -> dict[str, str]:
    """Return the tags of a version of a registered model.

    Raises:
        UserError: there is no such version, or the server does not respond.
    """
    with _short_requests(uri, f"{name}/{version}"):
        return dict(connect(uri).get_model_version(name, str(version)).tags)


def write_tags(uri: str, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Set tags of a version of a registered model.

    Raises:
        UserError: there is no such version, or the server does not respond.
    """
    with _short_requests(uri, f"{name}/{version}"):
        client = connect(uri)
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)


def move_champion(uri: str, name: str, before: int | None, after: int) -> None:
    """Point the alias champion at another version.

    Args:
        uri: MLflow's address.
        name: name of the registered model.
        before: version that is expected to be the champion; None: there is none.
        after: version that becomes the champion.

    Raises:
        UserError: another version than `before` is the champion, there is no version `after`, or the server does not
            respond.
    """
    current = aliases(uri, name).get(CHAMPION)
    if current != before:
        raise UserError(
            f"the champion was version {before or 'none'} when this began and is {current or 'none'} now",
            where=f"{name}@{CHAMPION}",
            fix="somebody else moved it; run this again",
        )
    with _short_requests(uri, f"{name}/{after}"):
        connect(uri).set_registered_model_alias(name, CHAMPION, str(after))


@contextmanager
def _short_requests(uri: str, what: str) -> Iterator[None]:
    """Bound the requests of the block in time, and turn MLflow's exceptions into a UserError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    check_exists(uri, what)
    try:
        with bounded_requests(REQUEST_TIMEOUT_S, REQUEST_RETRIES):
            yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"{what}: {format_error(error, uri)}",
            where=without_credentials(uri),
            fix="name a model that is registered there, and make sure that the server responds",
        ) from None
