"""Order and batches: coverage, seeking and shares of ranks."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalablevit.data.sampler import Key, TrainBatches, TrainOrder, eval_batches, eval_keys


@st.composite
def settings(draw: st.DrawFn) -> dict[str, int]:
    world = draw(st.integers(1, 7))
    accumulation_steps = draw(st.integers(1, 4))
    batch = draw(st.integers(world * accumulation_steps, 60))
    return {"world": world, "accumulation_steps": accumulation_steps, "global_batch_size": batch}


@given(settings(), st.integers(1, 50), st.integers(0, 9), st.integers(0, 5))
def test_ranks_share_every_position_exactly_once(sizes: dict[str, int], samples: int, first: int, steps: int) -> None:
    order = TrainOrder(samples, 1, seed=3)
    batch = sizes["global_batch_size"]
    got: Counter[Key] = Counter()
    for rank in range(sizes["world"]):
        parts = list(TrainBatches(order, rank=rank, first_step=first, end_step=first + steps, **sizes))
        assert len(parts) == steps * sizes["accumulation_steps"]
        assert all(parts)
        for step in range(steps):
            lengths = [len(part) for part in parts[step * sizes["accumulation_steps"] :][: sizes["accumulation_steps"]]]
            assert max(lengths) - min(lengths) <= 1
        got.update(chain.from_iterable(parts))
    assert got == Counter(order.key(p) for p in range(first * batch, (first + steps) * batch))


@given(settings(), st.integers(1, 50), st.integers(1, 3), st.integers(0, 6))
def test_a_resumed_stream_is_the_tail_of_the_whole(
    sizes: dict[str, int], samples: int, repeats: int, resume: int
) -> None:
    order = TrainOrder(samples, repeats, seed=5)
    whole = list(TrainBatches(order, rank=0, first_step=0, end_step=6, **sizes))
    tail = list(TrainBatches(TrainOrder(samples, repeats, seed=5), rank=0, first_step=resume, end_step=6, **sizes))
    assert tail == whole[resume * sizes["accumulation_steps"] :]


@given(st.integers(1, 80), st.integers(0, 3))
def test_an_epoch_is_a_permutation(samples: int, epoch: int) -> None:
    keys = [TrainOrder(samples, 1, seed=1).key(epoch * samples + slot) for slot in range(samples)]
    assert sorted(key.index for key in keys) == list(range(samples))
    assert [(key.epoch, key.position) for key in keys] == [(epoch, slot) for slot in range(samples)]


def test_order_depends_on_seed_and_epoch_only() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return [TrainOrder(100, 1, seed).key(number * 100 + slot).index for slot in range(100)]

    assert epoch(1, 0) == epoch(1, 0) == np.random.default_rng([1, 0]).permutation(100).tolist()
    assert epoch(1, 0) != epoch(1, 1)
    assert epoch(1, 0) != epoch(2, 0)


@given(st.integers(1, 60), st.integers(1, 5))
def test_repeats_keep_the_length_of_an_epoch(samples: int, repeats: int) -> None:
    keys = [TrainOrder(samples, repeats, seed=2).key(slot) for slot in range(samples)]
    counts = Counter(key.index for key in keys)
    assert len(counts) == -(-samples // repeats)
    assert sorted(counts.values(), reverse=True)[: samples // repeats] == [repeats] * (samples // repeats)
    assert len(set(keys)) == samples  # each copy has its own position, and so its own augmentation


def test_copies_of_an_image_meet_different_ranks() -> None:
    order = TrainOrder(90, 3, seed=0)
    ranks = [
        next(
            iter(
                TrainBatches(
                    order, global_batch_size=30, accumulation_steps=1, rank=rank, world=3, first_step=0, end_step=1
                )
            )
        )
        for rank in range(3)
    ]
    for first, second, third in zip(*ranks, strict=True):
        assert first.index == second.index == third.index
        assert len({first.position, second.position, third.position}) == 3


def test_seeking_does_not_replay() -> None:
    batches = TrainBatches(
        TrainOrder(1000, 1, 0),
        global_batch_size=64,
        accumulation_steps=2,
        rank=1,
        world=2,
        first_step=10**9,
        end_step=10**9 + 1,
    )
    assert [len(part) for part in batches] == [16, 16]


@given(st.integers(0, 70), st.integers(1, 9), st.integers(1, 20))
def test_evaluation_sees_every_sample_once(samples: int, world: int, size: int) -> None:
    shares = [eval_batches(samples, rank, world, size) for rank in range(world)]
    seen = [key.index for share in shares for batch in share for key in batch]
    assert sorted(seen) == list(range(samples))
    for rank, share in enumerate(shares):
        assert [key for batch in share for key in batch] == eval_keys(samples, rank, world)
        assert all(0 < len(batch) <= size for batch in share)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank": 2}, "rank"),
        ({"global_batch_size": 3}, "global_batch_size"),
        ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"first_step": 5}, "steps"),
    ],
)
def test_impossible_numbers_are_refused(changed: dict[str, int], message: str) -> None:
    sizes = {
        "global_batch_size": 4,
        "accumulation_steps": 2,
        "rank": 0,
        "world": 2,
        "first_step": 0,
        "end_step": 1,
    } | changed
    with pytest.raises(ValueError, match=message):
        TrainBatches(TrainOrder(10, 1, 0), **sizes)
    with pytest.raises(ValueError, match="samples"):
        TrainOrder(0, 1, 0)


@given(
    samples=st.integers(1, 90),
    batch=st.integers(1, 13),
    epoch=st.integers(0, 6),
    kinds=st.integers(1, 3),
    draws=st.randoms(use_true_random=False),
)
def test_grouped_steps_hold_one_group_and_every_sample_once(samples, batch, epoch, kinds, draws):
    groups = np.array([draws.randrange(kinds) for _ in range(samples)], np.int64)
    order = TrainOrder(samples, 1, 5, groups=groups, batch=batch)
    stream = range(epoch * samples, (epoch + 1) * samples)
    keys = [order.key(p) for p in stream]
    assert sorted(key.index for key in keys) == list(range(samples))
    steps: dict[int, set[int]] = {}
    for p, key in zip(stream, keys, strict=True):
        steps.setdefault(p // batch, set()).add(int(groups[key.index]))
    # the two that straddle epochs, and what is left over of each group
    assert sum(len(found) > 1 for found in steps.values()) <= kinds + 2
    again = TrainOrder(samples, 1, 5, groups=groups, batch=batch)
    assert [again.key(p) for p in reversed(stream)] == keys[::-1]


def test_groups_need_a_number_for_each_sample():
    with pytest.raises(ValueError, match="one number for each of 3 samples"):
        TrainOrder(3, 1, 0, groups=np.zeros(2, np.int64), batch=2)
