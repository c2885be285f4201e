"""What errors show of addresses."""

import pytest

from scalablevit.config.errors import UserError, UserErrors, masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pa%40ss@host:80/x failed", "http://***@host:80/x failed"),
        ("'https://token@host'", "'https://***@host'"),
        ("s3://key:se/cret@bucket/a", "s3://key:se/cret@bucket/a"),  # no address: a slash ends the part before the path
        ("/runs/s3:/key:secret@bucket/a", "/runs/s3:/***@bucket/a"),
        ("http://host/x?token=abc&page=2", "http://host/x?token=***&page=***"),
        ("models:/name@candidate: not found", "models:/name@candidate: not found"),
        ("http://host/x@y, /data/a@b/c.png, a@b.c", "http://host/x@y, /data/a@b/c.png, a@b.c"),
        ("did you mean 'lr'? a=b", "did you mean 'lr'? a=b"),
    ],
)
def test_addresses_lose_their_credentials(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_no_part_of_an_error_shows_them() -> None:
    uri = "http://user:secret@host"
    error = UserErrors([UserError(uri, where=uri, fix=uri)])
    assert "secret" not in f"{error} {error!r} {error.errors[0].what}"
    assert str(error).count("http://***@host") == 3
