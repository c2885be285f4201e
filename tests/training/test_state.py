"""What a state says of itself without copying its tensors."""

from dataclasses import asdict

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from scalablevit.config.recipe import Optimizer
from scalablevit.training import state as state_module
from scalablevit.training.optim import build_optimizer
from scalablevit.training.state import TrainState

OPTIMIZERS = [{"name": "adamw"}, {"name": "sgd"}, {"name": "sgd", "momentum": 0.0}]


def fresh(options: dict[str, object], *, average: bool) -> TrainState:
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3))
    model[0].bias.requires_grad_(False)  # not trained: it has no moments
    optimizer = build_optimizer(model, Optimizer.model_validate({"lr": 0.1, **options}))
    return TrainState(model, optimizer, ModelEmaV3(model, decay=0.9) if average else None)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("options", OPTIMIZERS)
def test_the_size_before_the_first_step_is_that_after_it(options, average):
    state = fresh(options, average=average)
    foretold = state.snapshot_bytes()
    state.model(torch.ones(4, 5)).sum().backward()
    state.optimizer.step()
    files = state.snapshot().files
    assert foretold == sum(t.nbytes for tensors in files.values() for t in tensors.values())
    assert state.snapshot_bytes() == foretold


def test_size_and_summary_copy_nothing(monkeypatch):
    state = fresh({}, average=True)
    state.step, state.best_step, state.best_value, state.seconds = 4, 2, 0.5, 1.5
    assert state.snapshot().meta.items() >= asdict(state.summary()).items()

    def copies(_: object) -> None:
        raise AssertionError("tensors were copied")

    monkeypatch.setattr(state_module, "_to_cpu", copies)
    assert state.snapshot_bytes() > 0
    assert asdict(state.summary()) == {
        "step": 4, "best_value": 0.5, "best_step": 2, "best_metrics": {}, "last_metrics": {}, "seconds": 1.5,
        "spent": {"data": 0.0, "checkpoint": 0.0, "evaluation": 0.0},
    }  # fmt: skip


def test_small_gains_do_not_reset_patience_until_they_add_up_to_min_delta():
    state = fresh({}, average=False)
    counts = []
    for value in (0.50, 0.505, 0.508, 0.515, float("nan"), 0.5149):
        best = state.add_evaluation({}, value, min_delta=0.01)
        counts.append((best, state.evaluations_without_gain))
    assert counts == [(True, 0), (True, 1), (True, 2), (True, 0), (False, 1), (False, 2)]
    assert state.best_value == 0.515

    other = fresh({}, average=False)
    other.restore(state.snapshot())
    assert (other.gain_value, other.evaluations_without_gain) == (0.515, 2)


DECAY = 0.7


def averaged(updates: int, *, warm_up: bool, stop_at: int | None = None) -> TrainState:
    """A state whose weight is the number of its step, after so many updates of the average; through a checkpoint."""
    torch.manual_seed(0)
    state = fresh({}, average=False)
    state.ema = ModelEmaV3(state.model, decay=DECAY, use_warmup=warm_up)
    for step in range(updates):
        if step == stop_at:
            resumed = averaged(0, warm_up=warm_up)
            resumed.restore(state.snapshot())
            state = resumed
        torch.nn.init.constant_(state.model[0].weight, step + 1)
        state.step += 1
        state.update_ema()
    return state


def average(state: TrainState) -> float:
    return state.ema.module[0].weight[0, 0].item()


@pytest.mark.parametrize("warm_up", [False, True])
def test_the_decay_follows_from_the_steps_done(warm_up):
    expected = average(averaged(0, warm_up=warm_up))
    decays = [min(DECAY, 1 - (1 + t) ** (-2 / 3)) if warm_up else DECAY for t in range(9)]
    for t, decay in enumerate(decays):
        expected = decay * expected + (1 - decay) * (t + 1)
        assert average(averaged(t + 1, warm_up=warm_up)) == pytest.approx(expected, rel=1e-6), t
    assert decays[-1] == DECAY, "the last ones have the whole decay"


@pytest.mark.parametrize("warm_up", [False, True])
@pytest.mark.parametrize("stop_at", [1, 3, 7])
def test_the_average_goes_on_from_a_checkpoint_bit_for_bit(warm_up, stop_at):
    whole, resumed = averaged(9, warm_up=warm_up), averaged(9, warm_up=warm_up, stop_at=stop_at)
    assert average(whole) == average(resumed)
