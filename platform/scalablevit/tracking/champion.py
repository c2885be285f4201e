"""The aliases candidate and champion of a registered model, and what is written on its versions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from scalablevit.config.errors import UserError
from scalablevit.tracking.connection import bounded_requests, check_there, connect, format_error, without_credentials

CANDIDATE, CHAMPION = "candidate", "champion"
REQUEST_TIMEOUT_S, REQUEST_RETRIES = 30, 2


def aliases(uri: str, name: str) -> dict[str, int]:
    """Version number by alias.

    Raises:
        UserError: no such model, or no answer.
    """
    with _short_requests(uri, name):
        return {alias: int(number) for alias, number in connect(uri).get_registered_model(name).aliases.items()}


def tags_of(uri: str, name: str, version: int) -> dict[str, str]:
    """Tags of a version.

    Raises:
        UserError: no such version, or no answer.
    """
    with _short_requests(uri, f"{name}/{version}"):
        return dict(connect(uri).get_model_version(name, str(version)).tags)


def write_tags(uri: str, name: str, version: int, tags: Mapping[str, str]) -> None:
    """Write on a version.

    Raises:
        UserError: no such version, or no answer.
    """
    with _short_requests(uri, f"{name}/{version}"):
        client = connect(uri)
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)


def move_champion(uri: str, name: str, before: int | None, after: int) -> None:
    """Point the alias champion at a version.

    Raises:
        UserError: it no longer points at `before`, there is no such version, or no answer.
    """
    found = aliases(uri, name).get(CHAMPION)
    if found != before:
        raise UserError(
            f"the champion was version {before or 'none'} when this began and is {found or 'none'} now",
            where=f"{name}@{CHAMPION}",
            fix="somebody else moved it; run this again",
        )
    with _short_requests(uri, f"{name}/{after}"):
        connect(uri).set_registered_model_alias(name, CHAMPION, str(after))


@contextmanager
def _short_requests(uri: str, what: str) -> Iterator[None]:
    """Short requests, and whatever MLflow raises as a UserError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    check_there(uri, what)
    try:
        with bounded_requests(REQUEST_TIMEOUT_S, REQUEST_RETRIES):
            yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"{what}: {format_error(error, uri)}",
            where=without_credentials(uri),
            fix="name a model that is registered there, and make sure that the server answers",
        ) from None
