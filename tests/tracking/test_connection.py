"""Addresses, secrets, and what an error means."""

import os
import sqlite3

import pytest
import requests
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos import databricks_pb2 as codes
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from scalablevit.config.errors import UserError
from scalablevit.tracking.connection import (
    Away,
    Refused,
    artifact_location,
    bounded_requests,
    check_response,
    check_uri,
    classify_error,
    format_error,
    mask,
    sqlite_file,
    without_credentials,
)


@pytest.mark.parametrize("uri", ["sqlite:////data/mlflow.db", "http://host:5000", "https://u:p@host/mlflow"])
def test_addresses_that_can_be_written_to(uri: str) -> None:
    check_uri(uri)


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "./mlruns", "file:///data/mlruns", "postgresql://u:secret@host/db", "databricks"]
)
def test_addresses_under_which_things_would_be_lost(uri: str) -> None:
    with pytest.raises(UserError) as raised:
        check_uri(uri)
    assert "tracking.uri" in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("secret", ["se/cret", "se cret", "se'cret", 'se"cret', "se?cret", "se#cret", "se[cret"])
@pytest.mark.parametrize(
    "address", ["http://me:{}@host:5000", "https://me:{}@host/mlflow", "postgresql://me:{}@host/x"]
)
def test_a_password_that_ends_too_early_is_refused_and_not_shown(secret: str, address: str) -> None:
    uri = address.format(secret)
    with pytest.raises(UserError) as raised:
        check_uri(uri)
    said = str(raised.value)
    assert "tracking.uri" in said and "%2F" in said
    for text in (said, without_credentials(uri), mask(f"cannot reach {uri}", "")):
        assert "cret" not in text and "host" in text


@pytest.mark.parametrize(
    "uri", ["http://[bad", "http://host]", "http:", "https:///mlflow", "http://host:fifty", "http://host:0"]
)
def test_no_address_at_all(uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri"):
        check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:pa%40ss@host:5000/x?token=t", "http://host:5000/x"),
        ("https://host", "https://host"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
    ],
)
def test_addresses_are_shown_without_credentials(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


def test_messages_keep_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "http://user:pa%40ss@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tok-123")
    text = f"request to {uri}/api failed, tried pa@ss and tok-123, also ftp://a:b@c/d; plain http://host/x@y stays"
    shown = mask(text, uri)
    for secret in ("pa%40ss", "pa@ss", "tok-123", "a:b"):
        assert secret not in shown
    assert "plain http://host/x@y stays" in shown


def test_an_error_on_one_bounded_line() -> None:
    shown = format_error(ValueError("first\n  second " + "x" * 5000), "http://host")
    assert shown.startswith("first second x")
    assert "\n" not in shown
    assert len(shown) == 400
    assert format_error(ValueError(), "http://host") == "ValueError"


def test_a_new_experiment_lies_beside_its_database() -> None:
    assert artifact_location("sqlite:////data/mlflow.db") == "file:///data/mlartifacts"
    assert artifact_location("http://host") is None


def test_request_limits_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "55")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with pytest.raises(ZeroDivisionError), bounded_requests(3):  # noqa: PT012
        inside = os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"], os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]
        raise ZeroDivisionError
    assert inside == ("3", "0")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "55"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def _rest_error(code: str) -> Exception:
    return RestException({"error_code": code, "message": "m"})  # type: ignore[no-untyped-call]


def _http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("x", response=response)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_rest_error("INVALID_PARAMETER_VALUE"), "refused"),
        (_rest_error("RESOURCE_DOES_NOT_EXIST"), "refused"),
        (_rest_error("UNAUTHENTICATED"), "away"),
        (_rest_error("PERMISSION_DENIED"), "away"),
        (_rest_error("INTERNAL_ERROR"), "away"),
        (_rest_error("TEMPORARILY_UNAVAILABLE"), "away"),
        (MlflowException("no such page", codes.ENDPOINT_NOT_FOUND), "away"),
        (MlflowException("something", codes.BAD_REQUEST), "unclear"),
        (MlflowException("API request failed with exception ..."), "away"),
        (_http_error(413), "refused"),
        (_http_error(429), "away"),
        (_http_error(502), "away"),
        (requests.ConnectionError("x"), "away"),
        (ConnectionRefusedError(), "away"),
        (TimeoutError(), "away"),
        (OperationalError("s", {}, sqlite3.OperationalError("database is locked")), "away"),
        (FileNotFoundError("x"), "away"),
        (OSError(28, "no space left"), "away"),
        (_http_error(404), "unclear"),
        (Refused("x"), "refused"),
        (UserError("x"), "refused"),
        (Away("x"), "away"),
        (PermissionError("x"), "away"),
        (KeyError("x"), "unclear"),
    ],
)
def test_what_an_error_means(error: Exception, expected: str) -> None:
    assert classify_error(error) == expected


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:////data/mlflow.db", "/data/mlflow.db"),
        ("sqlite:////exp #2/mlflow.db", "/exp #2/mlflow.db"),
        ("sqlite:////a%20b/mlflow.db", "/a b/mlflow.db"),
        ("sqlite:////100%/mlflow.db", "/100%/mlflow.db"),
        ("sqlite:////data/mlflow.db?timeout=5", "/data/mlflow.db"),
        ("sqlite:///mlflow.db", "mlflow.db"),
    ],
)
def test_an_sqlite_file_is_the_one_that_sqlalchemy_opens(uri: str, file: str) -> None:
    assert str(sqlite_file(uri)) == file == make_url(uri).database


def test_a_path_in_an_sqlite_address_is_kept_whole() -> None:
    uri = "sqlite:////exp #2/mlflow.db"
    assert without_credentials(uri) == uri
    assert artifact_location(uri) == "file:///exp%20%232/mlartifacts"
    assert without_credentials("sqlite:////data/m.db?password=canary") == "sqlite:////data/m.db"
    assert sqlite_file("http://host") is None


def test_a_server_that_does_not_respond_is_named_without_its_password(tmp_path) -> None:
    with pytest.raises(UserError, match="MLflow does not respond as it should: ") as raised:
        check_response("http://me:canary-4711@127.0.0.1:9")
    assert "tracking.uri=http://127.0.0.1:9" in str(raised.value) and "canary" not in str(raised.value)
    missing, damaged = tmp_path / "missing.db", tmp_path / "damaged.db"
    assert check_response(f"sqlite:///{missing}") == "no file yet: the first run makes it" and not missing.exists()
    damaged.write_bytes(b"no database " * 99)
    with pytest.raises(UserError, match="not a database"):
        check_response(f"sqlite:///{damaged}")
