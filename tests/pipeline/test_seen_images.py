"""Whether a model is evaluated on images that it was trained on: by contents, whatever their names and folders."""

import shutil
from pathlib import Path

import pytest
from harness.finished_runs import one_thread
from harness.toys import finished_run, make_root, stage_of

from scalablevit.cli import pack
from scalablevit.cli.tree import parse
from scalablevit.config.data import SPLITS
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.data.sources.opening import open_source
from scalablevit.io import sha256_of
from scalablevit.pipeline.seen_images import SeenImages, find_seen
from scalablevit.run_files import MODEL, WEIGHTS, WEIGHTS_NAME
from scalablevit.training.data_listing import store_listings

__all__ = ["one_thread"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "root")


def trained(root: Path, *overrides: str) -> tuple[Stage, Path]:
    """A stage and the folder of its finished run, which has listed its data."""
    stage, folder = stage_of("pretrain", *overrides), root / "runs" / finished_run(root, "pretrain", *overrides)
    sources = {split: open_source(stage.data, split, root) for split in SPLITS}
    for source in sources.values():
        source.read_contents()
    store_listings(str(folder), sources)
    return stage, folder


def seen(root: Path, stage: Stage, weights: Path, data_root: str = "data", most: float = 0.01) -> SeenImages:
    evaluated = stage_of("pretrain", f"data.root={data_root}")
    val = open_source(evaluated.data, "val", root)
    return find_seen("the model", weights, sha256_of(weights), stage.data, val, most, root)


def leak(root: Path, count: int) -> None:
    """Copy the data, with some training images among those of validation, under other names."""
    shutil.copytree(root / "data", root / "leaked")
    for number, file in enumerate(sorted((root / "data/classification/train").rglob("*.jpg"))[:count]):
        shutil.copy(file, root / "leaked/classification/val" / file.parent.name / f"other_{number}.jpg")


def test_images_of_the_training_are_counted_and_refused_above_the_recipes_limit(root: Path) -> None:
    stage, folder = trained(root)
    weights = folder / WEIGHTS
    assert seen(root, stage, weights) == SeenImages(0, "none of 12 images is among the 18 that it was trained on")
    leak(root, 3)
    with pytest.raises(
        UserError, match="3 of 15 validation images are among those that the model was trained"
    ) as caught:
        seen(root, stage, weights, "leaked", most=0.19)
    assert "allows 0.19" in caught.value.what and "/other_0.jpg = " in caught.value.what
    assert "data.max_shared_fraction" in caught.value.fix
    shutil.rmtree(root / "data/classification/train")  # the listing says what was there
    found = seen(root, stage, weights, "leaked", most=0.2)
    assert found.count == 3 and found.words.startswith("3 of 15 validation images are among those")


def test_a_registered_copy_is_known_by_its_files(root: Path, tmp_path: Path) -> None:
    stage, folder = trained(root)
    finished_run(root, "pretrain", seed=1)
    shutil.copytree(folder / MODEL, tmp_path / "cache")
    assert seen(root, stage, tmp_path / "cache" / WEIGHTS_NAME).count == 0
    (folder / WEIGHTS).write_bytes(b"of another model")
    found = seen(root, stage, tmp_path / "cache" / WEIGHTS_NAME)
    assert found.count is None and "its run is not below" in found.words


def test_what_cannot_be_known_is_said(root: Path) -> None:
    stage, folder = trained(root)
    shutil.rmtree(folder / "data")
    found = seen(root, stage, folder / WEIGHTS)
    assert (
        found.count is None
        and found.words == "not compared with what it was trained on: its run has no listing of that"
    )


def test_images_in_shards_are_compared_while_the_shards_are_those_of_the_training(root: Path) -> None:
    leak(root, 1)
    for split in ("train", "val"):
        pack.run(parse("pack", [str(root / "data/classification" / split), str(root / "packed" / split)]))
    values = ("source=tar_shards", "root=packed", "train.images=train", "val.images=val")
    stage, folder = trained(root, *(f"stages.pretrain.data.{value}" for value in values))
    assert seen(root, stage, folder / WEIGHTS, "leaked", most=1).count == 1
    (shard,) = (root / "packed/train").glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:-1024] + bytes(1023) + b"x")
    found = seen(root, stage, folder / WEIGHTS, "leaked")
    assert found.count is None and found.words.endswith("that has changed since")
