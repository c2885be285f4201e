"""What a state says of itself without copying its tensors."""

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
    assert state.snapshot().meta.items() >= state.summary().items()

    def copies(_: object) -> None:
        raise AssertionError("tensors were copied")

    monkeypatch.setattr(state_module, "_to_cpu", copies)
    assert state.snapshot_bytes() > 0
    assert state.summary() == {
        "step": 4, "best_value": 0.5, "best_step": 2, "best_metrics": {}, "last_metrics": {}, "seconds": 1.5,
        "spent": {"data": 0.0, "checkpoint": 0.0, "evaluation": 0.0},
    }  # fmt: skip


def test_small_gains_do_not_reset_patience_until_they_add_up_to_min_delta():
    state = fresh({}, average=False)
    counts = []
    for value in (0.50, 0.505, 0.508, 0.515, float("nan"), 0.5149):
        best = state.saw_evaluation({}, value, min_delta=0.01)
        counts.append((best, state.evaluations_without_gain))
    assert counts == [(True, 0), (True, 1), (True, 2), (True, 0), (False, 1), (False, 2)]
    assert state.best_value == 0.515

    other = fresh({}, average=False)
    other.restore(state.snapshot())
    assert (other.gain_value, other.evaluations_without_gain) == (0.515, 2)
