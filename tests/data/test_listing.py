"""Listings: the same bytes for the same data, mapped by all processes of a node."""

import hashlib
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from scalablevit.data.sources import listing as listings
from scalablevit.data.sources import node_cache
from scalablevit.data.sources.listing import FACTS, Listing, Names
from scalablevit.data.sources.node_cache import VARIABLE, open_on_node

NAMES = ["a.jpg", "b/\udcff.png", "ü"]


def listing(count: int = 1000) -> Listing:
    arrays = {**Names.of(NAMES).arrays(), "stamps": np.arange(count * 3).reshape(-1, 3), "none": np.zeros((0, 4))}
    return Listing({"classes": ["cat", "dög"], "ignored": []}, arrays)


def same(one: Listing, other: Listing) -> bool:
    assert one.facts == other.facts and one.arrays.keys() == other.arrays.keys()
    return all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(made: Listing) -> Listing:
    content = made.pack()
    return open_on_node(hashlib.sha256(content).hexdigest(), lambda: content)


def test_packing_keeps_everything_and_is_repeatable(tmp_path: Path) -> None:
    made = listing()
    content = made.pack()
    assert content == listing().pack() and same(Listing.unpack(content), made)
    assert list(Names.from_listing(Listing.unpack(content))) == NAMES
    for damaged in (b"", content[:-30], b"PK" + content[20:]):
        with pytest.raises(ValueError, match="not a listing"):
            Listing.unpack(damaged)


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/b", "a\\b", "..", ".hidden", "", "A", "a.b", "a\n"])
def test_a_name_that_would_lead_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    made = Listing({}, {"names": np.zeros(1), name: np.zeros(1)})
    for write in (made.pack, lambda: made.save(tmp_path / "inner/kept")):
        with pytest.raises(ValueError, match="is no name of an array"):
            write()
    with pytest.raises(ValueError, match=r"not a listing: .* is no name of an array"):
        Listing.unpack(archive({f"{name}.npy": saved(np.zeros(1))}))
    assert not list(tmp_path.iterdir())


def test_an_entry_that_is_no_array_is_refused() -> None:
    assert Listing.unpack(archive({"names.npy": saved(np.arange(3))})).arrays["names"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="'names' is no file of an array"):
        Listing.unpack(archive({"names": saved(np.arange(3))}))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        Listing.unpack(archive({"names.npy": saved(np.array([{}], object), allow_pickle=True)}))


def test_a_listing_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Listing({}, {"zeros": np.zeros(10**6, np.uint8)})
    content = made.pack()
    size = len(saved(made.arrays["zeros"])) + len("{}")
    assert len(content) < 10_000 < size
    monkeypatch.setattr(listings, "LARGEST", size)
    assert same(Listing.unpack(made.pack()), made)
    monkeypatch.setattr(listings, "LARGEST", size - 1)
    with pytest.raises(ValueError, match=f"not a listing: unpacked it has {size} bytes, more than {size - 1}"):
        Listing.unpack(content)
    with pytest.raises(ValueError, match=f"unpacked it has {size} bytes"):
        made.pack()


def archive(entries: dict[str, bytes]) -> bytes:
    """As somebody else could write it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in {FACTS: b"{}", **entries}.items():
            made.writestr(name, content)
    return file.getvalue()


def saved(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def test_a_mapped_listing_travels_as_a_name_and_shares_what_was_checked(tmp_path: Path) -> None:
    listing(100_000).save(tmp_path / "kept")
    first = Listing.open(tmp_path / "kept")
    travelled = pickle.dumps(first)
    assert len(travelled) < 1000
    second = pickle.loads(travelled)  # noqa: S301  # as the loader does
    assert same(first, second)
    first.arrays["stamps"][7] = 5
    assert second.arrays["stamps"][7].tolist() == [5, 5, 5]
    first.arrays["names"][0] = 0
    assert second.arrays["names"][0] == ord("a"), "only times may be written"


def test_a_node_unpacks_once(cache: Path) -> None:
    made = listing()
    content = made.pack()
    fetched = []

    def fetch() -> bytes:
        fetched.append(1)
        return content

    sha256 = hashlib.sha256(content).hexdigest()
    assert all(same(open_on_node(sha256, fetch), made) for _ in range(3))
    assert len(fetched) == 1
    with pytest.raises(ValueError, match="not 00"):
        open_on_node("00", fetch)
    assert [file.name for file in (cache / "listings").iterdir()] == [sha256]


@pytest.mark.parametrize("trouble", ["a file", "writable by all", "a link"])
def test_a_folder_that_cannot_be_trusted_is_said_and_memory_taken(
    cache: Path, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if trouble == "a file":
        cache.write_text("")
    elif trouble == "a link":
        (cache.parent / "real").mkdir(mode=0o700)
        cache.symlink_to(cache.parent / "real")
    else:
        cache.mkdir()
        cache.chmod(0o777)
    found = opened(listing())
    assert same(found, listing()) and found.folder is None
    out = capsys.readouterr().out
    assert str(cache) in out and "MiB" in out and VARIABLE in out


def test_a_storage_that_fails_is_not_taken_for_a_broken_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetched = []

    def fetch() -> bytes:
        fetched.append(1)
        raise OSError("AWS Error NETWORK_CONNECTION")

    with pytest.raises(ValueError, match="it cannot be read: AWS Error"):
        open_on_node("0" * 64, fetch)
    assert len(fetched) == 1 and capsys.readouterr().out == ""


def test_listings_of_long_ago_make_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [opened(listing(count)) for count in (10, 20, 30)]
    monkeypatch.setattr(node_cache, "LARGEST", 1)
    monkeypatch.setattr(node_cache, "UNUSED_S", -1)
    last = opened(listing(40))
    assert list((cache / "listings").iterdir()) == [last.folder]
    assert same(kept[0], listing(10)), "what is mapped stays readable"
