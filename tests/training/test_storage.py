"""Files in run storage are whole, whoever else writes them."""

import errno
import os

import pytest

from scalablevit.run_files import BAD_SAMPLES
from scalablevit.training.storage import add_bad_samples, open_filesystem, put, put_text


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
