"""Files in run storage are whole, whoever else writes them."""

import errno
import os

import pytest
from harness.object_store import refusing

from scalablevit.config.errors import UserError
from scalablevit.run_files import BAD_SAMPLES
from scalablevit.training.storage import add_bad_samples, check_storage, open_filesystem, put, put_text


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    filesystem, path = open_filesystem(str(tmp_path / "note"))
    real, others = os.fsync, [b"second"]

    def fsync(descriptor: int) -> None:
        if others:  # in the middle of the first writing the second one happens as a whole
            put(filesystem, path, others.pop())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    put(filesystem, path, b"first")
    assert (tmp_path / "note").read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["note"]


def test_a_writing_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    filesystem, path = open_filesystem(str(tmp_path / "note"))
    put(filesystem, path, b"before")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        put(filesystem, path, b"after")
    assert [each.name for each in tmp_path.iterdir()] == ["note"]
    assert (tmp_path / "note").read_bytes() == b"before"


def test_a_text_replaces_the_one_before(tmp_path):
    for text in ("one", "zwölf"):
        put_text(str(tmp_path / "run"), "start.txt", text)
    assert (tmp_path / "run" / "start.txt").read_text(encoding="utf-8") == "zwölf"


def test_bad_samples_of_all_attempts_are_kept_once(tmp_path):
    add_bad_samples(str(tmp_path / "run"), {"b.jpg": "no\nimage", "a.jpg": "cut short"})
    add_bad_samples(str(tmp_path / "run"), {"c.jpg": "empty", "a.jpg": "cut short"})
    text = (tmp_path / "run" / BAD_SAMPLES).read_text()
    assert text == "a.jpg\tcut short\nb.jpg\tno image\nc.jpg\tempty\n"


@pytest.mark.parametrize(
    ("status", "code", "what", "fix"),
    [(403, "InvalidAccessKeyId", "does not know the access key (writing a small file: INVALID_ACCESS_KEY_ID)",
      "check AWS_ACCESS_KEY_ID"),
     (403, "SignatureDoesNotMatch", "refuses the secret of the access key", "check AWS_SECRET_ACCESS_KEY"),
     (404, "NoSuchBucket", "there is no such bucket", "make the bucket"),
     (403, "AccessDenied", "does not permit it with this access key, or without one (writing", "set AWS"),
     (400, "EntityTooSmall", "writing a small file there fails: ", "check the address, AWS_ENDPOINT_URL")],
)  # fmt: skip
def test_what_an_object_store_refuses_is_a_plain_error(monkeypatch, status, code, what, fix):
    """On a real one: tests/cluster/test_object_storage.py."""
    with refusing(status, code) as store:
        store.use(monkeypatch)
        with pytest.raises(UserError) as caught:
            check_storage("s3://bucket/runs")
    assert caught.value.where == "s3://bucket/runs" and what in caught.value.what and fix in caught.value.fix
    assert "-is-secret" not in str(caught.value)


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(UserError, match="Unrecognized filesystem type"):
        check_storage("nonesuch://bucket/runs")


def test_storage_that_returns_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("scalablevit.training.storage.read", lambda *_: b"old")
    with pytest.raises(UserError, match="reads as something else"):
        check_storage(str(tmp_path))
