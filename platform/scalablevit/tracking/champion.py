"""Reads and moves the aliases candidate and champion of a registered model; reads and writes tags of its versions."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from scalablevit.config.errors import UserError
from scalablevit.text import and_more
from scalablevit.tracking.connection import bounded_requests, check_exists, connect, format_error, without_credentials

CANDIDATE, CHAMPION = "candidate", "champion"
REQUEST_TIMEOUT_S, REQUEST_RETRIES = 30, 2
"""Seconds and retries of one request, see `bounded_requests`."""

_MODELS, _SHOWN_MODELS = 1000, 20
"""Most registered models that are looked at, as many as MLflow lists at once, and that are named in an error."""
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a model or version, and for an alias, that it does not have."""


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
        raise failed_lookup(error, what, uri) from None


def failed_lookup(error: Exception, what: str, uri: str) -> UserError:
    """Return the error for a registered model or version that could not be read, with the names that there are.

    Args:
        error: of MLflow's client.
        what: the model or version, as NAME, NAME/VERSION, NAME@ALIAS, or one of them after `models:/`.
        uri: MLflow's address.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    where, name = without_credentials(uri), re.split("[/@]", what.removeprefix("models:/"))[0]
    if getattr(error, "error_code", "") in _NOT_THERE:
        with suppress(MlflowException, SQLAlchemyError, OSError), bounded_requests(REQUEST_TIMEOUT_S):
            names = [model.name for model in connect(uri).search_registered_models(max_results=_MODELS)]
            if name not in names and len(names) < _MODELS:
                known = ", ".join(names[:_SHOWN_MODELS]) + and_more(len(names), _SHOWN_MODELS)
                fix = f"registered there: {known or 'no model'}; a training registers its model at its end"
                return UserError(f"nothing is registered as {name}", where=where, fix=fix)
    fix = "name a model that is registered there, and make sure that the server responds"
    return UserError(f"{what}: {format_error(error, uri)}", where=where, fix=fix)
