"""Which samples make up which step: plain arithmetic on a position, so that seeking costs nothing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Key(NamedTuple):
    """A sample and everything that its augmentation may depend on besides the seed."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which a key has no use for
    """Number of the sample in its source."""
    epoch: int
    """Pass over the training split, from 0."""
    position: int
    """Slot within the epoch, from 0."""


class TrainOrder:
    """The endless shuffled stream of training samples: position p is slot `p % samples` of epoch `p // samples`.

    With `repeats` r (repeated augmentation, Hoffer et al., arXiv 1901.09335) an epoch keeps its `samples` slots but
    holds only about `samples / r` distinct images, each in r consecutive slots: ranks that take every n-th position
    then share the copies of an image among them.

    With `groups` the steps that lie within an epoch hold images of one group each, as far as the numbers allow, and
    the steps of the groups come in random order. What is left over makes mixed steps.

    Args:
        samples: images of the training split, at least 1.
        repeats: times a distinct image occurs in an epoch, at least 1; 1 with groups.
        seed: decides the order, together with the epoch.
        groups: number of each image's group, (samples,); None: one.
        batch: images of a step, for `groups`.
    """

    def __init__(
        self, samples: int, repeats: int, seed: int, groups: NDArray[np.int64] | None = None, batch: int = 1
    ) -> None:
        if samples < 1 or repeats < 1:
            raise ValueError(f"samples ({samples}) and repeats ({repeats}) must be at least 1")
        if groups is not None and (len(groups) != samples or repeats > 1):
            raise ValueError(f"groups need one number for each of {samples} samples, and repeats ({repeats}) of 1")
        self.samples = samples
        self.repeats = repeats
        self.seed = seed
        self.groups = groups
        self.batch = batch
        self._orders: dict[int, NDArray[np.int64]] = {}

    def key(self, p: int) -> Key:
        """The sample at stream position `p` >= 0."""
        epoch, slot = divmod(p, self.samples)
        return Key(int(self._order(epoch)[slot // self.repeats]), epoch, slot)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.samples)
            if self.groups is not None:
                first_step = -epoch * self.samples % self.batch
                order = _grouped(order, self.groups, self.batch, first_step, rng)
            # a step can straddle two epochs
            self._orders = {known: each for known, each in self._orders.items() if known == epoch - 1} | {epoch: order}
        return self._orders[epoch]


def _grouped(
    order: NDArray[np.int64], groups: NDArray[np.int64], batch: int, first_step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Move images of one group together into the runs of `batch` slots that begin at `first_step`."""
    room = max(0, len(order) - first_step) // batch
    pure: list[NDArray[np.int64]] = []
    rest: list[NDArray[np.int64]] = []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        whole = len(members) // batch * batch
        pure += list(members[:whole].reshape(-1, batch))
        rest.append(members[whole:])
    pure = [pure[number] for number in rng.permutation(len(pure))]
    left = rng.permutation(np.concatenate([*rest, *pure[room:]]))
    mixed = room - len(pure[:room])
    head, middle, tail = np.split(left, [first_step, first_step + mixed * batch])
    steps = [*pure[:room], *middle.reshape(-1, batch)]
    return np.concatenate([head, *(steps[number] for number in rng.permutation(len(steps))), tail])


class TrainBatches:
    """The micro-batches of one rank for steps `first_step <= step < end_step`.

    Step s covers stream positions s * global_batch_size up to (s + 1) * global_batch_size; a rank takes every
    `world`-th of them from its own number on, and cuts them into `accumulation_steps` parts whose sizes differ by at
    most 1.

    Raises:
        ValueError: some micro-batch would be empty, or a number is out of range.
    """

    def __init__(
        self,
        order: TrainOrder,
        *,
        global_batch_size: int,
        accumulation_steps: int,
        rank: int,
        world: int,
        first_step: int,
        end_step: int,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank ({rank}) must be in 0..{world - 1}")
        if accumulation_steps < 1 or global_batch_size < world * accumulation_steps:
            raise ValueError(
                f"global_batch_size ({global_batch_size}) must be at least world ({world}) x accumulation_steps "
                f"({accumulation_steps})"
            )
        if not 0 <= first_step <= end_step:
            raise ValueError(f"steps {first_step}..{end_step} must rise from 0")
        self.order = order
        self.global_batch_size = global_batch_size
        self.accumulation_steps = accumulation_steps
        self.rank = rank
        self.world = world
        self.first_step = first_step
        self.end_step = end_step

    def __len__(self) -> int:
        return (self.end_step - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[Key]]:
        for step in range(self.first_step, self.end_step):
            start = step * self.global_batch_size
            mine = range(start + self.rank, start + self.global_batch_size, self.world)
            for part in range(self.accumulation_steps):
                cut = slice(
                    part * len(mine) // self.accumulation_steps, (part + 1) * len(mine) // self.accumulation_steps
                )
                yield [self.order.key(p) for p in mine[cut]]


def eval_keys(samples: int, rank: int, world: int) -> list[Key]:
    """This rank's share of an evaluation: over all ranks every sample exactly once, none padded."""
    return [Key(index, 0, index) for index in range(rank, samples, world)]


def eval_batches(samples: int, rank: int, world: int, batch_size: int) -> list[list[Key]]:
    """`eval_keys` in batches of at most `batch_size`; the last one may be smaller, and a rank may have none."""
    keys = eval_keys(samples, rank, world)
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
