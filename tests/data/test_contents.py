"""Sums of files: nothing unchanged is read again, and no change is missed."""

import os
import sqlite3
from pathlib import Path

import pytest
from harness.machines import be_machine

from scalablevit.data import contents, progress
from scalablevit.data.contents import ContentCache, read_contents_of
from scalablevit.data.progress import OutOfTime
from scalablevit.data.sources.listing import Names

NAMES = Names.of(["a", "b/c", "d"])


class Reads:
    """The files that were hashed since it was last asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        read = contents.file_sum

        def counted(path: str) -> bytes | None:
            self.names.append(Path(path).name)
            return read(path)

        monkeypatch.setattr(contents, "file_sum", counted)

    def take(self) -> list[str]:
        """Return them, sorted."""
        found, self.names = sorted(self.names), []
        return found


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are trusted at once."""
    monkeypatch.setattr(contents, "SETTLED_NS", -(10**12))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {name}")
    return tmp_path / "data"


def look(folder: Path, cache: ContentCache | None = None, names: Names = NAMES) -> list[str]:
    found = read_contents_of(folder, names, cache, "data.train", None)
    assert found.sizes.tolist() == [contents.file_stamp(f"{folder}/{name}")[0] for name in names]
    return [each.tobytes().hex() for each in found.sums]


@pytest.mark.usefixtures("settled")
def test_only_what_changed_is_read_again(folder: Path, tmp_path: Path, reads: Reads) -> None:
    cache = ContentCache.in_root(tmp_path)
    first = look(folder, cache)
    assert reads.take() == ["a", "c", "d"] and len(set(first)) == 3
    assert look(folder, cache) == first and reads.take() == []
    assert look(folder) == first and reads.take() == ["a", "c", "d"]

    before = (folder / "a").stat()
    (folder / "a").write_text("Content of a")  # same size, and its time put back
    os.utime(folder / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = look(folder, cache)
    assert reads.take() == ["a"] and second[0] != first[0] and second[1:] == first[1:]

    (folder / "d").touch()
    assert look(folder, cache) == second and reads.take() == ["d"]
    assert look(folder, cache) == second and reads.take() == []


@pytest.mark.usefixtures("settled")
def test_files_that_come_and_go_leave_the_others_known(folder: Path, tmp_path: Path, reads: Reads) -> None:
    cache = ContentCache.in_root(tmp_path)
    a, c, d = look(folder, cache)
    reads.take()
    (folder / "b/b").write_text("new")
    more = Names.of(["a", "b/b", "b/c", "d"])
    found = look(folder, cache, more)
    assert reads.take() == ["b"] and [found[0], *found[2:]] == [a, c, d]
    (folder / "a").unlink()
    assert look(folder, cache, more) == ["0" * 64, *found[1:]] and reads.take() == []
    assert look(folder, cache, Names.of(["d"])) == [d] and reads.take() == []


def test_times_of_files_just_written_are_not_trusted(folder: Path, tmp_path: Path, reads: Reads) -> None:
    cache = ContentCache.in_root(tmp_path)
    first = look(folder, cache)
    reads.take()
    assert look(folder, cache) == first
    assert reads.take() == ["a", "c", "d"]


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.mark.usefixtures("settled")
def test_what_was_hashed_until_time_was_up_is_known(
    folder: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    cache = ContentCache.in_root(tmp_path)
    read = contents.file_sum

    def slow(path: str) -> bytes | None:
        clock.now += 1
        return read(path)

    monkeypatch.setattr(contents, "file_sum", slow)
    with pytest.raises(OutOfTime, match=r"data.train: hashing 3 files: .* MiB, about \d+ s left"):
        read_contents_of(folder, NAMES, cache, "data.train", clock.now + 0.5)
    known = reads.take()
    assert known == ["a"]
    look(folder, cache)
    assert reads.take() == ["c", "d"]


@pytest.mark.usefixtures("settled")
def test_a_damaged_cache_is_said_and_costs_only_time(
    folder: Path, tmp_path: Path, reads: Reads, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ContentCache.in_root(tmp_path)
    first = look(folder, cache)
    cache.file.write_bytes(b"no database" * 100)
    assert look(folder, ContentCache.in_root(tmp_path)) == first and len(reads.take()) == 6
    (line,) = capsys.readouterr().out.splitlines()
    assert str(cache.file) in line and "not a database" in line and "hashed again" in line


@pytest.mark.usefixtures("settled")
def test_sums_of_another_node_are_not_taken(folder: Path, tmp_path: Path, reads: Reads) -> None:
    cache = ContentCache.in_root(tmp_path)
    first = look(folder, cache)
    with sqlite3.connect(cache.file) as connection:
        connection.execute("update folders set node = 'elsewhere'")
    assert look(folder, cache) == first and len(reads.take()) == 6


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    ("first", "second", "known"),
    [
        (("a1", "4" * 32), ("b2", "4" * 32), True),  # a container that was started again, with the node's id mounted
        (("a1", "4" * 32), ("a1", "5" * 32), False),  # two machines of one name
        (("a1", None), ("b2", None), False),
        (("a1", None), ("a1", None), True),
        (("a1", ""), ("b2", ""), False),
        (("a1", "uninitialized\n"), ("b2", "uninitialized\n"), False),
        (("a1", None), ("a1", "4" * 32), True),  # as releases that knew host names only left them
        (("a1", "4" * 32), ("a1", None), False),
    ],
)
def test_a_node_is_known_by_its_machine_id_else_by_its_host_name(
    folder: Path, tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch,
    first: tuple[str, str | None], second: tuple[str, str | None], known: bool,
) -> None:  # fmt: skip
    cache = ContentCache.in_root(tmp_path)
    be_machine(monkeypatch, tmp_path, *first)
    sums = look(folder, cache)
    reads.take()
    be_machine(monkeypatch, tmp_path, *second)
    assert look(folder, cache) == sums
    assert reads.take() == ([] if known else ["a", "c", "d"])
    if first[1]:
        assert first[1].strip().encode() not in cache.file.read_bytes(), "the id itself is nobody's business"


@pytest.mark.usefixtures("settled")
def test_a_file_is_changed_by_its_contents_not_by_its_times(folder: Path, reads: Reads) -> None:
    found = read_contents_of(folder, NAMES, None, "data.train", None)
    path = str(folder / "d")
    reads.take()
    assert not found.has_changed(2, path) and reads.take() == []
    (folder / "d").touch()
    assert not found.has_changed(2, path) and reads.take() == ["d"]
    assert not found.has_changed(2, path) and reads.take() == []
    (folder / "d").write_text("Content of d")
    assert found.has_changed(2, path) and found.has_changed(2, path)
    (folder / "d").unlink()
    assert not found.has_changed(2, path), "its reader says that it is missing"
