"""Shards that do not fit their index, or an index that lies: refused by name."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scalablevit.config.data import Split, TarShards
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, read_header, read_image
from scalablevit.data.packing import Packing, pack
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.opening import open_class_folders, open_source
from scalablevit.inspection.check import check_split

DATA = TarShards(source="tar_shards", root="set", train=Split(images="train"), val=Split(images="val"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images of two classes, in more than one shard a split."""
    noise = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(noise.integers(0, 256, (64, 96, 3), dtype=np.uint8))
            image.save(tmp_path / "plain" / name / f"{number}.jpg")
    for split in ("train", "val"):
        source = open_class_folders(tmp_path / "plain")
        pack(source, tmp_path / "set" / split, Packing(40_000, None, 90, 1), lambda line: None)
    assert len(list((tmp_path / "set/train").glob("*.tar"))) > 1
    return tmp_path


def opened(root: Path) -> Source:
    return open_source(DATA, "train", root)


def change(root: Path, edit: Callable[[Any], None], split: str = "train") -> None:
    file = root / "set" / split / "index.json"
    tree = json.loads(file.read_bytes())
    edit(tree)
    file.write_text(json.dumps(tree))


def refused(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        opened(root)
    assert caught.value.fix
    return str(caught.value)


def in_first(key: str, value: object) -> Callable[[Any], None]:
    return lambda tree: tree["shards"][0].update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (in_first("name", "../000000.tar"), "shards.0.name"),
        (in_first("name", "/etc/x.tar"), "shards.0.name"),
        (lambda tree: tree["shards"][0]["names"].__setitem__(0, "../../1.jpg"), "shards.0.names.0"),
        (lambda tree: tree["shards"][0]["offsets"].__setitem__(0, 10**9), "is not within"),
        (lambda tree: tree["shards"][0]["offsets"].__setitem__(0, 0), "is not within"),
        (lambda tree: tree["shards"][0]["offsets"].__setitem__(0, 513), "is not within"),
        (lambda tree: tree["shards"][0]["sizes"].__setitem__(0, -1), "is not within"),
        (lambda tree: tree["shards"][0]["sizes"].__setitem__(0, 10**6), "is not within"),
        (lambda tree: tree["shards"][0]["sizes"].pop(), "differ in length"),
        (lambda tree: tree["shards"][0]["labels"].__setitem__(0, 2), r"labels are not in 0..1"),
        (lambda tree: tree["shards"].append(tree["shards"][0]), "a shard occurs twice"),
        (lambda tree: tree.update(shards=[]), "shards"),
        (lambda tree: tree.update(version=2), "version"),
        (in_first("sha256", "x"), "shards.0.sha256"),
        (lambda tree: tree["shards"][0].update(size=2**70, offsets=[2**69] * 2), "shards.0.size"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(root: Path, edit: Callable[[Any], None], message: str) -> None:
    change(root, edit)
    assert message in refused(root)
    assert "data.train.images" in refused(root)


def test_no_index_no_shards(root: Path) -> None:
    (root / "set/train/index.json").write_bytes(b'{"version": 1')
    assert "set/train/index.json cannot be used" in refused(root)
    (root / "set/train/index.json").unlink()
    assert "set/train holds no index.json" in refused(root)


@pytest.mark.timeout(60)  # a pipe that nobody writes to is read for ever
def test_an_index_that_is_no_file_is_not_read(root: Path) -> None:
    index = root / "set/train/index.json"
    index.rename(root / "elsewhere.json")
    index.symlink_to(root / "elsewhere.json")
    assert f"{index} is no file" in refused(root)
    index.unlink()
    os.mkfifo(index)
    assert f"{index} is no file" in refused(root)


def test_other_classes_in_the_other_split(root: Path) -> None:
    change(root, lambda tree: tree.update(classes=["cat", "emu"]), "val")
    assert "only train has dog; only val has emu" in refused(root)
    change(root, lambda tree: tree.update(classes=["dog", "cat"]), "val")
    assert "their order" in refused(root)


def test_missing_cut_and_linked_shards_are_named(root: Path) -> None:
    first, second = sorted((root / "set/train").glob("*.tar"))[:2]
    content = first.read_bytes()
    first.write_bytes(content[:-1])
    second.unlink()
    assert f"2 shards are damaged: {first} has {len(content) - 1} bytes, not {len(content)}; {second} is no" in refused(
        root
    )
    first.write_bytes(content)
    second.symlink_to(first)
    assert f"1 shards are damaged: {second} is no file" in refused(root)


def test_a_shard_that_changes_later_makes_bad_samples(root: Path) -> None:
    source = opened(root)
    image, other = source[0].image, source[1].image
    shard = sorted((root / "set/train").glob("*.tar"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:2000])
    for read in (read_image, read_header):
        with pytest.raises(BadSample, match="cut short") as caught:
            read(image, 10**6)
        assert caught.value.path == f"{shard}/000000000.jpg"
    with pytest.raises(BadSample, match="something else at this place"):
        read_image(other, 10**6)
    shard.write_bytes(bytes(len(content)))
    with pytest.raises(BadSample, match="something else at this place"):
        read_image(image, 10**6)
    shard.unlink()
    with pytest.raises(BadSample, match="No such file"):
        read_image(image, 10**6)


def test_an_offset_into_another_sample_is_noticed(root: Path) -> None:
    change(root, lambda tree: tree["shards"][0]["offsets"].reverse())
    with pytest.raises(BadSample, match="something else at this place"):
        read_image(opened(root)[0].image, 10**6)


def test_a_changed_byte_is_found_by_the_check(root: Path) -> None:
    shard = sorted((root / "set/train").glob("*.tar"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # behind the last member: every image is whole
    shard.write_bytes(content)
    report = check_split(opened(root), DATA, 1, depth="pixels")
    assert [(problem.path, problem.reason) for problem in report.damaged] == [
        (str(shard), "differs from its sum in the index")
    ]
    assert report.unreadable == ()
