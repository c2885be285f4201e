"""Image folders packed: whole, in order, the same each time, or not at all."""

import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.errors import UserError
from scalablevit.data import packing
from scalablevit.data.decoding import BadSample
from scalablevit.data.packing import Packing, pack
from scalablevit.data.shards import Index
from scalablevit.data.sources.base import Sample
from scalablevit.data.sources.opening import open_class_folders

SIZES = {"cat/1.jpg": (40, 64), "cat/2.PNG": (64, 40), "dog/a.b.jpg": (16, 20), "dog/z.jpeg": (120, 100)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several kinds and sizes (width, height); one is turned by its EXIF."""
    for number, (name, size) in enumerate(SIZES.items()):
        file = tmp_path / "plain" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        exif = Image.Exif()
        if name == "cat/1.jpg":
            exif[0x0112] = 6
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, exif=exif)
    return tmp_path / "plain"


def packed(folder: Path, target: Path, *, shard_bytes: int = 2**20, short_side: int | None = None) -> Index:
    options = Packing(shard_bytes=shard_bytes, short_side=short_side, quality=90, workers=2)
    return pack(open_class_folders(folder), target, options, lambda line: None)


def members(target: Path) -> list[tuple[str, bytes]]:
    found = []
    for shard in sorted(target.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found += [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    return found


def test_layout_is_webdatasets_and_the_index_is_right(folder: Path, tmp_path: Path) -> None:
    index = packed(folder, tmp_path / "made", shard_bytes=25_000)
    assert index == Index.model_validate_json((tmp_path / "made/index.json").read_bytes())
    assert index.classes == ["cat", "dog"]
    assert [label for shard in index.shards for label in shard.labels] == [0, 0, 1, 1]
    assert len(index.shards) > 1
    wanted = []
    for number, name in enumerate(SIZES):
        key, suffix = f"{number:09}", name.rpartition(".")[2].lower()
        wanted += [(f"{key}.{suffix}", (folder / name).read_bytes()), (f"{key}.cls", str(number // 2).encode())]
    assert members(tmp_path / "made") == wanted
    for shard in index.shards:
        with tarfile.open(tmp_path / "made" / shard.name) as tar:
            images = [member for member in tar if not member.name.endswith(".cls")]
        assert [(each.name, each.offset_data, each.size) for each in images] == list(
            zip(shard.names, shard.offsets, shard.sizes, strict=True)
        )


def test_the_same_folder_makes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for target in ("one", "two"):
        packed(folder, tmp_path / target, short_side=32)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["000000.tar", "index.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("limit", [1, 24_000, 26_000, 40_000])
def test_shards_keep_their_limit(folder: Path, tmp_path: Path, limit: int) -> None:
    for shard in packed(folder, tmp_path / "made", shard_bytes=limit).shards:
        assert shard.size <= limit or len(shard.names) == 1


def test_larger_images_are_shrunk_upright_and_smaller_ones_copied(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "made", short_side=32)
    found = dict(members(tmp_path / "made"))
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in found.items() if not name.endswith(".cls")}
    assert sizes == {
        "000000000.jpg": (51, 32),  # 40 x 64 turned
        "000000001.jpg": (51, 32),
        "000000002.jpg": (16, 20),
        "000000003.jpg": (38, 32),
    }
    assert found["000000002.jpg"] == (folder / "dog/a.b.jpg").read_bytes()
    shrunk = Image.open(folder / "dog/z.jpeg").resize((38, 32), Image.Resampling.BILINEAR)
    made = Image.open(io.BytesIO(found["000000003.jpg"]))
    assert np.abs(np.asarray(made, int) - np.asarray(shrunk, int)).mean() < 4
    assert not made.getexif()


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_unreadable_images_are_named_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    (folder / "cat/1.jpg").write_bytes(b"spoilt")
    (folder / "dog/z.jpeg").write_bytes((folder / "dog/z.jpeg").read_bytes()[:-200])
    with pytest.raises(UserError, match="2 of 4 images cannot be read") as caught:
        packed(folder, tmp_path / "made", short_side=32)
    assert f"{folder}/cat/1.jpg: not an image" in str(caught.value)
    assert f"{folder}/dog/z.jpeg: the file is cut short" in str(caught.value)
    assert left(tmp_path) == ["plain"]


def test_transparency_is_kept_since_the_recipe_says_what_is_behind_it(folder: Path, tmp_path: Path) -> None:
    for alpha in (255, 128):
        Image.new("RGBA", (120, 100), (9, 9, 9, alpha)).save(folder / f"dog/{alpha}.png")
    packed(folder, tmp_path / "made", short_side=32)
    found = dict(members(tmp_path / "made"))
    assert found["000000002.png"] == (folder / "dog/128.png").read_bytes()
    assert Image.open(io.BytesIO(found["000000003.jpg"])).size == (38, 32)


def test_deep_images_are_copied_so_that_the_check_can_doubt_their_range(folder: Path, tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 120 * 100).reshape(100, 120)
    Image.fromarray(ramp.astype(np.uint16)).save(folder / "dog/twelve.png")
    Image.fromarray((16 * ramp).astype(np.int32)).save(folder / "dog/whole.tif")
    packed(folder, tmp_path / "made", short_side=32)
    content = dict(members(tmp_path / "made"))
    assert content["000000003.png"] == (folder / "dog/twelve.png").read_bytes()
    assert content["000000004.tif"] == (folder / "dog/whole.tif").read_bytes()
    assert Image.open(io.BytesIO(content["000000005.jpg"])).size == (38, 32)


def test_a_jpeg_with_broken_data_is_refused_before_it_would_become_a_sound_one(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((folder / "dog/z.jpeg").read_bytes())
    content[-60:-30] = bytes(30)
    (folder / "dog/z.jpeg").write_bytes(content)
    with pytest.raises(UserError, match="1 of 4 images cannot be read") as caught:
        packed(folder, tmp_path / "made", short_side=32)
    assert f"{folder}/dog/z.jpeg: cannot be decoded (ValueError: Corrupt JPEG data" in str(caught.value)
    assert capfd.readouterr().err == ""
    assert left(tmp_path) == ["plain"]
    packed(folder, tmp_path / "made")  # copied, the damage stays where the check finds it
    assert dict(members(tmp_path / "made"))["000000003.jpeg"] == content


def test_few_images_are_in_memory_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, ahead = (folder / "cat/1.jpg").read_bytes(), list[int]()
    for number in range(96):
        (folder / f"dog/{number}.jpg").write_bytes(content)
    encode, begun = packing._encode, list[Sample]()

    def count(sample: Sample, options: Packing) -> tuple[str, bytes] | BadSample:
        begun.append(sample)
        return encode(sample, options)

    def wait(line: str) -> None:
        if not ahead:
            time.sleep(0.3)  # the threads read as far ahead as they may
        ahead.append(len(begun) - len(ahead))

    monkeypatch.setattr(packing, "_encode", count)
    options = Packing(shard_bytes=1, short_side=None, quality=90, workers=2)  # a shard for each image
    index = pack(open_class_folders(folder), tmp_path / "made", options, wait)
    assert len(index.shards) == len(ahead) == len(begun) == 100
    assert max(ahead) <= 4 * options.workers


def test_an_interrupt_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        assert not (tmp_path / "made").exists()
        raise KeyboardInterrupt

    options = Packing(shard_bytes=25_000, short_side=None, quality=90, workers=1)
    with pytest.raises(KeyboardInterrupt):
        pack(open_class_folders(folder), tmp_path / "made", options, interrupt)
    assert left(tmp_path) == ["plain"]


def test_a_target_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/made: Not a directory"):
        packed(folder, tmp_path / "file/made")


def test_an_existing_target_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="made exists"):
        packed(folder, tmp_path / "made")
    assert left(tmp_path) == ["made", "plain"]
    assert left(tmp_path / "made") == []
