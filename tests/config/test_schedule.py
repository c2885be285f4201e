"""The learning rate by step: with `warmup_prefix` the values of timm's schedulers, and the largest one."""

import json
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler
from timm.scheduler.scheduler import Scheduler

from scalablevit.config.recipe import Length, Optimizer
from scalablevit.config.schedule import largest_rate, learning_rate

TOTAL, WARMUP, LR = 40, 12, 2e-3


def optimizer_of(**schedule: Any) -> Optimizer:
    sections = {"lr": LR, "schedule": {"warmup_steps": WARMUP, "warmup_lr": 1e-5, **schedule}}
    return Optimizer.model_validate_json(json.dumps(sections))


def length_of(warmup: int = WARMUP, decay_steps: tuple[int, ...] = ()) -> Length:
    return Length(steps_per_epoch=10, total=TOTAL, warmup=warmup, evaluate_every=TOTAL, checkpoint_every=None,
                  decay_steps=decay_steps)  # fmt: skip


def rates(optimizer: Optimizer, length: Length) -> list[float]:
    return [learning_rate(step, optimizer, length) for step in range(length.total)]


def timm_rates(build: type[Scheduler], **options: Any) -> list[float]:
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = build(sgd, warmup_t=WARMUP, warmup_lr_init=1e-5, t_in_epochs=False, **options)
    found = []
    for step in range(TOTAL):
        scheduler.step_update(step)
        found.append(sgd.param_groups[0]["lr"])
    return found


def test_a_cosine_after_the_warm_up_is_that_of_timm() -> None:
    ours = rates(optimizer_of(kind="cosine", min_lr=1e-6, warmup_prefix=True), length_of())
    timm = timm_rates(CosineLRScheduler, t_initial=TOTAL - WARMUP, lr_min=1e-6, warmup_prefix=True)
    assert ours == pytest.approx(timm, rel=1e-12)
    assert ours[WARMUP] == LR


def test_a_polynomial_after_the_warm_up_is_that_of_timm() -> None:
    ours = rates(optimizer_of(kind="polynomial", power=0.9, min_lr=1e-6, warmup_prefix=True), length_of())
    timm = timm_rates(PolyLRScheduler, t_initial=TOTAL - WARMUP, power=0.9, lr_min=1e-6, warmup_prefix=True)
    assert ours == pytest.approx(timm, rel=1e-12)


def test_decays_count_from_the_end_of_the_warm_up() -> None:
    recipe = optimizer_of(kind="multistep", decay_epochs=[1, 2], warmup_prefix=True)
    ours = rates(recipe, length_of(decay_steps=(10, 20)))
    # timm lets a milestone hold one step early
    timm = timm_rates(MultiStepLRScheduler, decay_t=[11, 21], decay_rate=0.1, warmup_prefix=True)
    assert ours == pytest.approx(timm, rel=1e-12)
    assert [ours[step] / LR for step in (21, 22, 31, 32)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("prefix", [False, True])
def test_without_a_warm_up_the_key_changes_nothing(prefix: bool) -> None:
    recipe = optimizer_of(kind="cosine", warmup_steps=0, warmup_prefix=prefix)
    assert rates(recipe, length_of(0)) == rates(optimizer_of(kind="cosine", warmup_steps=0), length_of(0))


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine"}, {"kind": "polynomial"}, {"kind": "constant"}, {"kind": "cosine", "min_lr": 5e-3},
        {"kind": "multistep", "decay_epochs": [1, 2]}, {"kind": "cosine", "warmup_lr": 3e-3},
    ],
)  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 1, WARMUP, TOTAL - 1])
def test_the_largest_rate_is_that_of_all_steps(schedule: dict[str, Any], prefix: bool, warmup: int) -> None:
    recipe = optimizer_of(**schedule, warmup_steps=warmup, warmup_prefix=prefix)
    length = length_of(warmup, (10, 20) if schedule["kind"] == "multistep" else ())
    assert largest_rate(recipe, length) == max(rates(recipe, length))


def test_half_of_the_rate_is_reached_after_a_warm_up_of_half_the_training() -> None:
    half = length_of(TOTAL // 2)
    assert largest_rate(optimizer_of(kind="cosine", warmup_steps=TOTAL // 2), half) == pytest.approx(LR / 2)
    assert largest_rate(optimizer_of(kind="cosine", warmup_steps=TOTAL // 2, warmup_prefix=True), half) == LR
