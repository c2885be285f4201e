"""The learning rate as a function of the step."""

import math

from scalablevit.config.recipe import Length, Optimizer, Schedule


def learning_rate(step: int, optimizer: Optimizer, length: Length) -> float:
    """Return the learning rate of one optimizer step, before the factors of layers.

    It depends on the step alone, so resuming needs no scheduler state. The curve runs over all `length.total` steps.
    During the warm-up the rate rises linearly from `warmup_lr` to the curve's value at the end of the warm-up, so there
    is no jump. With `warmup_prefix` the curve runs over the steps after the warm-up.

    Source: cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts. Polynomial: Chen et al., "DeepLab", IEEE
    TPAMI 2018, here down to `min_lr`.

    Args:
        step: 0-based; `length.total` gives the end of the curve.
        optimizer: the recipe's section, with the schedule.
        length: of the stage, in steps.
    """
    schedule = optimizer.schedule
    if step < length.warmup:
        end = _curve(length.warmup, optimizer.lr, schedule, length)
        return schedule.warmup_lr + (end - schedule.warmup_lr) * step / length.warmup
    return _curve(step, optimizer.lr, schedule, length)


def largest_rate(optimizer: Optimizer, length: Length) -> float:
    """Return the largest learning rate of all steps, before the factors of layers.

    Warm-up and curve each rise or fall throughout, so one of their ends has it.
    """
    ends = {0, min(length.warmup, length.total - 1), length.total - 1}
    return max(learning_rate(step, optimizer, length) for step in ends)


def _curve(step: int, peak: float, schedule: Schedule, length: Length) -> float:
    start = length.warmup if schedule.warmup_prefix else 0
    done = min(1.0, (step - start) / max(1, length.total - start))
    match schedule.kind:
        case "constant":
            return peak
        case "cosine":
            return schedule.min_lr + (peak - schedule.min_lr) * (1 + math.cos(math.pi * done)) / 2
        case "polynomial":
            return schedule.min_lr + (peak - schedule.min_lr) * math.pow(1 - done, schedule.power)
        case "multistep":
            decays = sum(step - start >= decay for decay in length.decay_steps)
            return peak * math.pow(schedule.gamma, decays)
