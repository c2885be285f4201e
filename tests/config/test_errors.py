"""What errors show of addresses."""

import pytest

from scalablevit.config.errors import UserError, UserErrors, mask_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pa%40ss@host:80/x failed", "http://***@host:80/x failed"),
        ("'https://token@host'", "'https://***@host'"),
        # characters that an address cannot have there, but people's passwords have
        ("s3://key:se/cret@bucket/a", "s3://***@bucket/a"),
        ("tried http://me:p/a/ss@host:80/x in vain", "tried http://***@host:80/x in vain"),
        ("override 'tracking.uri=http://me:my secret@host'", "override 'tracking.uri=http://***@host'"),
        ('got "http://me:it\'s@host/x"', 'got "http://***@host/x"'),
        ("got 'http://me:a\"b@host', see http://host:80", "got 'http://***@host', see http://host:80"),
        ("http://me:what?now/a@host", "http://***@host"),
        ("http://me:p@ss@host and http://you:pass@there", "http://***@host and http://***@there"),
        ("http://localhost:5000 is not there; ask me@host", "http://localhost:5000 is not there; ask me@host"),
        ("http://host:80/a?x=1@2 and a: b@c", "http://host:80/a?x=*** and a: b@c"),
        ("/runs/s3:/key:secret@bucket/a", "/runs/s3:/***@bucket/a"),
        ("http://host/x?token=abc&page=2", "http://host/x?token=***&page=***"),
        ("models:/name@candidate: not found", "models:/name@candidate: not found"),
        ("http://host/x@y, /data/a@b/c.png, a@b.c", "http://host/x@y, /data/a@b/c.png, a@b.c"),
        ("did you mean 'lr'? a=b", "did you mean 'lr'? a=b"),
    ],
)
def test_addresses_lose_their_credentials(text: str, shown: str) -> None:
    assert mask_credentials(text) == shown


def test_no_part_of_an_error_shows_them() -> None:
    uri = "http://user:secret@host"
    error = UserErrors([UserError(uri, where=uri, fix=uri)])
    assert "secret" not in f"{error} {error!r} {error.errors[0].what}"
    assert str(error).count("http://***@host") == 3
