"""Files in run storage are whole, whoever else writes them."""

import errno
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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


class Store(BaseHTTPRequestHandler):
    """An object store that refuses everything for one reason."""

    reason = 403, "InvalidAccessKeyId"

    def refuse(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        status, code = self.reason
        body = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode() * (self.command != "HEAD")
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = refuse  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_wrong_key_or_bucket_is_a_plain_error(monkeypatch):
    store = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=store.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{store.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    for reason, said in (
        ((403, "InvalidAccessKeyId"), "INVALID_ACCESS_KEY_ID"),
        ((404, "NoSuchBucket"), "NO_SUCH_BUCKET"),
    ):
        monkeypatch.setattr(Store, "reason", reason)
        with pytest.raises(UserError, match=said) as caught:
            check_storage("s3://bucket/runs")
        assert caught.value.where == "s3://bucket/runs" and "AWS_ENDPOINT_URL" in caught.value.fix
    store.shutdown()
    store.server_close()
    with pytest.raises(UserError, match="Unrecognized filesystem type"):
        check_storage("nonesuch://bucket/runs")


def test_storage_that_returns_something_else_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("scalablevit.training.storage.read", lambda *_: b"old")
    with pytest.raises(UserError, match="reads as something else"):
        check_storage(str(tmp_path))
