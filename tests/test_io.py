"""Files that are written whole or not at all, and their sums."""

import os

import pytest

from scalablevit.io import sha256_of, write_file


def test_a_file_is_written_and_replaced(tmp_path):
    for content in (b"first", b"", b"second"):
        write_file(tmp_path / "a.json", content)
        assert (tmp_path / "a.json").read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_leaves_what_was_there(there, tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    if there:
        file.write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_file(file, b"after")
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == ({"a.json": b"before"} if there else {})


def full(descriptor):
    raise OSError("disk full")


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    file = tmp_path / "a.json"
    file.touch()
    file.chmod(0o640)
    write_file(file, b"secret")
    assert file.stat().st_mode & 0o777 == 0o640


def test_only_what_has_to_last_waits_for_the_disk(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(os, "fsync", waits.append)
    write_file(tmp_path / "cache", b"x", durable=False)
    assert waits == []
    write_file(tmp_path / "status", b"x")
    assert len(waits) == 2  # the file and its folder's entry


def test_the_sum_is_that_of_the_content(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(file) == sha256_of(str(file)) == wanted
