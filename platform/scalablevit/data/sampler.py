"""The samples of each step, by plain arithmetic on a position, so that resuming at any step costs nothing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Key(NamedTuple):
    """A sample and everything that its augmentation may depend on besides the seed."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which is not used
    """Index of the sample in its source."""
    epoch: int
    """Pass over the training split, from 0."""
    position: int
    """Slot within the epoch, from 0."""


class TrainOrder:
    """The endless shuffled stream of training samples: position p is slot `p % samples` of epoch `p // samples`.

    With `repeats` r (repeated augmentation, Hoffer et al., arXiv 1901.09335) an epoch keeps its `samples` slots but
    holds only about `samples / r` distinct images, each in r consecutive slots: ranks that take every n-th position
    then share the copies of an image among them.

    With `groups` a step within an epoch has images of one group only, as far as their numbers allow, and the steps are
    in random order. The remaining images make mixed steps.

    Args:
        samples: number of images in the training split, at least 1.
        repeats: times that a distinct image occurs in an epoch, at least 1; 1 with groups.
        seed: decides the order, together with the epoch.
        groups: (samples,) index of each image's group; None: no groups.
        batch: images per step, for `groups`.

    Raises:
        ValueError: an argument is out of range.
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
        """Return the sample at stream position `p` >= 0."""
        epoch, slot = divmod(p, self.samples)
        return Key(int(self._order(epoch)[slot // self.repeats]), epoch, slot)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, epoch])
            order = rng.permutation(self.samples)
            if self.groups is not None:
                first_step = -epoch * self.samples % self.batch
                order = _group_steps(order, self.groups, self.batch, first_step, rng)
            # the previous epoch's order stays, since a step can straddle two epochs
            previous = {known: kept for known, kept in self._orders.items() if known == epoch - 1}
            self._orders = previous | {epoch: order}
        return self._orders[epoch]


def _group_steps(
    order: NDArray[np.int64], groups: NDArray[np.int64], batch: int, first_step: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return an epoch's order in which the runs of `batch` slots from slot `first_step` on have images of one group."""
    whole_steps = max(0, len(order) - first_step) // batch
    pure: list[NDArray[np.int64]] = []
    rest: list[NDArray[np.int64]] = []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        in_steps = len(members) // batch * batch
        pure += list(members[:in_steps].reshape(-1, batch))
        rest.append(members[in_steps:])
    pure = [pure[index] for index in rng.permutation(len(pure))]
    remaining = rng.permutation(np.concatenate([*rest, *pure[whole_steps:]]))
    mixed = whole_steps - len(pure[:whole_steps])
    head, middle, tail = np.split(remaining, [first_step, first_step + mixed * batch])
    steps = [*pure[:whole_steps], *middle.reshape(-1, batch)]
    return np.concatenate([head, *(steps[index] for index in rng.permutation(len(steps))), tail])


class TrainBatches:
    """The micro-batches of one rank for steps `first_step <= step < end_step`.

    Step s covers stream positions s * global_batch_size up to (s + 1) * global_batch_size. A rank takes every
    `world`-th of them, beginning with position `rank` of the step, and divides them into `accumulation_steps`
    micro-batches whose sizes differ by at most 1.

    Args:
        order: the stream of samples.
        global_batch_size: samples of a step, over all ranks.
        accumulation_steps: micro-batches of a step and rank.
        rank: from 0.
        world: number of ranks.
        first_step: from 0.
        end_step: after the last step.

    Raises:
        ValueError: some micro-batch would be empty, or an argument is out of range.
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
            of_rank = range(start + self.rank, start + self.global_batch_size, self.world)
            for part in range(self.accumulation_steps):
                micro_batch = slice(
                    part * len(of_rank) // self.accumulation_steps, (part + 1) * len(of_rank) // self.accumulation_steps
                )
                yield [self.order.key(p) for p in of_rank[micro_batch]]


def eval_keys(samples: int, rank: int, world: int) -> list[Key]:
    """Return a rank's share of an evaluation: over all `world` ranks every sample exactly once, without padding."""
    return [Key(index, 0, index) for index in range(rank, samples, world)]


def eval_batches(samples: int, rank: int, world: int, batch_size: int) -> list[list[Key]]:
    """Return `eval_keys` in batches of `batch_size`; the last one may be smaller, and a rank may have none."""
    keys = eval_keys(samples, rank, world)
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
