"""Batches, alike from any number of processes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit.config.data import ImageFolder, MaskPairs, Split
from scalablevit.config.errors import UserError
from scalablevit.data.dataset import Bad, Item, SampleDataset
from scalablevit.data.loader import (
    Batch,
    build_loader,
    collate_classification,
    collate_segmentation_eval,
    collate_segmentation_train,
    prefetch,
    to_device,
)
from scalablevit.data.sampler import Key, TrainBatches, TrainOrder
from scalablevit.data.sources.opening import open_source

CPU = torch.device("cpu")


def item(index: int, side: int = 4, **fields: object) -> Item:
    return {"image": np.full((side, side + 1, 3), index, np.uint8), "index": index, **fields}  # type: ignore[typeddict-item]


def mask(index: int, side: int = 4) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.full((side, side + 1), index, np.uint8)


def test_classification_batch() -> None:
    batch = collate_classification([item(3, label=7), Bad(5, "x.jpg", "cut"), item(4, label=0)])
    assert batch.images.shape == (2, 4, 5, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == [3, 4]
    assert batch.labels.dtype == torch.int64
    assert batch.labels.tolist() == [7, 0]
    assert batch.indices.tolist() == [3, 4]
    assert (batch.samples, batch.bad) == (2, [("x.jpg", "cut")])


def test_segmentation_batches() -> None:
    batch = collate_segmentation_train([item(1, mask=mask(1)), item(2, mask=mask(2))])
    assert batch.images.shape == (2, 4, 5, 3)
    assert batch.masks.shape == (2, 4, 5)
    assert batch.masks.dtype == torch.uint8
    assert (batch.samples, batch.bad) == (2, [])
    batch = collate_segmentation_eval([item(1, 4, mask=mask(1, 8)), Bad(9, "y", "z"), item(2, 6, mask=mask(2, 3))])
    assert [tuple(image.shape) for image in batch.images] == [(4, 5, 3), (6, 7, 3)]
    assert [tuple(each.shape) for each in batch.masks] == [(8, 9), (3, 4)]
    assert (batch.indices.tolist(), batch.samples, batch.bad) == ([1, 2], 2, [("y", "z")])


@pytest.mark.parametrize("collate", [collate_classification, collate_segmentation_train, collate_segmentation_eval])
def test_batch_without_good_samples(collate: object) -> None:
    batch = collate([Bad(0, "a", "b")])  # type: ignore[operator]
    assert (len(batch.images), batch.samples, batch.bad) == (0, 0, [("a", "b")])


@pytest.fixture
def samples(tmp_path: Path) -> SampleDataset:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(5):
                noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(noise).save(tmp_path / split / name / f"{number}.jpg")
    (tmp_path / "train/dog/3.jpg").write_bytes(b"spoilt")
    data = ImageFolder(
        source="image_folder",
        root=str(tmp_path),
        train=Split(images="train"),
        val=Split(images="val"),
        image_size=16,
        eval_resize=16,
    )
    return SampleDataset(open_source(data, "train", Path("/")), data, 0, train=True)


def batches(first_step: int = 0) -> TrainBatches:
    return TrainBatches(
        TrainOrder(10, 1, 0),
        global_batch_size=4,
        accumulation_steps=1,
        rank=0,
        world=1,
        first_step=first_step,
        end_step=6,
    )


def load(samples: SampleDataset, workers: int, keys: Iterable[list[Key]]) -> list[Batch]:
    return list(build_loader(samples, keys, collate_classification, workers=workers, device=CPU))


def same(first: Batch, second: Batch) -> bool:
    tensors = all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("images", "labels", "indices"))
    return tensors and (first.samples, first.bad) == (second.samples, second.bad)


def test_processes_change_nothing(samples: SampleDataset) -> None:
    here = load(samples, 0, batches())
    there = load(samples, 2, batches())
    assert len(here) == len(there) == 6
    assert all(same(first, second) for first, second in zip(here, there, strict=True))
    assert [batch.indices.tolist() for batch in here] == [
        [key.index for key in keys if key.index != 8] for keys in batches()
    ]
    spoilt = [path for batch in here for path, _ in batch.bad]
    assert len(spoilt) == sum(key.index == 8 for keys in batches() for key in keys) > 0
    assert all(path.endswith("dog/3.jpg") for path in spoilt)


def test_a_later_start_gives_the_tail(samples: SampleDataset) -> None:
    whole, tail = load(samples, 0, batches()), load(samples, 0, batches(first_step=4))
    assert all(same(first, second) for first, second in zip(whole[4:], tail, strict=True))


def test_the_global_generator_is_left_alone(samples: SampleDataset) -> None:
    before = torch.get_rng_state()
    load(samples, 0, batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_moving_keeps_lists_and_other_values() -> None:
    batch = collate_segmentation_eval([item(1, mask=mask(1)), Bad(2, "a", "b")])
    moved = to_device(batch, torch.device("meta"))
    assert moved.indices.device.type == "meta"
    assert [image.device.type for image in moved.images] == ["meta"]
    assert (moved.samples, moved.bad) == (1, [("a", "b")])


def test_prefetching_keeps_order(samples: SampleDataset) -> None:
    plain = load(samples, 0, batches())
    fetched = list(prefetch(build_loader(samples, batches(), collate_classification, workers=0, device=CPU), CPU))
    assert all(same(first, second) for first, second in zip(plain, fetched, strict=True))


def test_segmentation_evaluation_through_processes(tmp_path: Path) -> None:
    sizes = [(20, 30), (31, 22), (25, 25)]
    for name in ("i", "m"):
        (tmp_path / name).mkdir()
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"i/{number}.png")
        Image.fromarray(np.full((height, width), number % 2, np.uint8)).save(tmp_path / f"m/{number}.png")
    split = Split(images="i", masks="m")
    data = MaskPairs(
        source="mask_pairs", root=str(tmp_path), train=split, val=split, classes=["a", "b"], short_side=16, long_side=16
    )
    dataset = SampleDataset(open_source(data, "val", Path("/")), data, 0, train=False)
    keys = [[Key(0, 0, 0), Key(1, 0, 1)], [Key(2, 0, 2)]]
    made = list(build_loader(dataset, keys, collate_segmentation_eval, workers=1, device=CPU))
    assert [tuple(each.shape) for batch in made for each in batch.masks] == sizes
    assert all(max(image.shape) == 16 for batch in made for image in batch.images)


def test_what_a_task_collates_to_has_to_be_a_batch() -> None:
    """As packages for earlier versions did."""
    batches: Any = iter([{"image": torch.zeros(1), "samples": 1}])
    with pytest.raises(UserError, match="`collate` returns a dict, not a Batch") as caught:
        next(prefetch(batches, CPU))
    assert "scalablevit.data.batch" in caught.value.fix
