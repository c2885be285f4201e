"""Predictions take no more threads than there are free cores."""

import threading
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from scalablevit.serving import model, threads
from scalablevit.serving.request import Limits
from scalablevit.serving.threads import free_threads, limit_threads


@pytest.fixture(autouse=True)
def torchs_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def machine(monkeypatch: pytest.MonkeyPatch, load: float, cores: int = 4, ours: int = 4) -> None:
    monkeypatch.setattr(threads, "other_load", lambda: load)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(ours)))
    monkeypatch.setattr(threads.os, "cpu_count", lambda: cores)


@pytest.mark.parametrize(
    ("load", "cores", "ours", "most", "expected"),
    [
        (0.0, 4, 4, 4, 4),
        (0.0, 4, 4, 2, 2),
        (1.0, 4, 4, 4, 3),
        (1.5, 4, 4, 4, 2),
        (4.0, 4, 4, 4, 1),
        (90.0, 4, 4, 4, 1),
        (32.0, 64, 8, 8, 4),
        (0.0, 64, 8, 64, 8),
    ],
)
def test_threads_are_the_free_cores(monkeypatch, load, cores, ours, most, expected):
    machine(monkeypatch, load, cores, ours)
    assert free_threads(most) == expected


def test_torchs_number_is_limited_within_and_back_after_contexts_that_overlap(monkeypatch):
    torch.set_num_threads(3)
    machine(monkeypatch, 2.0)
    first, second = limit_threads(), limit_threads()
    first.__enter__()
    assert torch.get_num_threads() == 2
    machine(monkeypatch, 3.0)
    second.__enter__()
    assert torch.get_num_threads() == 1
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == 3
    with pytest.raises(ValueError, match="planted"), limit_threads():
        raise ValueError("planted")
    assert torch.get_num_threads() == 3


def test_many_threads_at_once_leave_torchs_number_as_it_was(monkeypatch):
    torch.set_num_threads(3)
    machine(monkeypatch, 3.0)

    def predict_often() -> None:
        for _ in range(200):
            with limit_threads():
                pass

    workers = [threading.Thread(target=predict_often) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert torch.get_num_threads() == 3 and not threads._outside


def test_a_served_model_predicts_with_free_threads(monkeypatch):
    torch.set_num_threads(2)
    machine(monkeypatch, 3.0)
    used = []

    def predict_batch(images):
        used.append(torch.get_num_threads())
        return [SimpleNamespace(to_dict=lambda: {"class": "cat"}) for _ in images]

    served = model.ImageModel()
    served.limits = Limits()
    data = SimpleNamespace(max_pixels=100, mean=(0.5, 0.5, 0.5))
    served.trained = SimpleNamespace(stage=SimpleNamespace(data=data), predict_batch=predict_batch)
    monkeypatch.setattr("scalablevit.data.decoding.decode_image", lambda *_, **__: torch.zeros(2, 2, 3).numpy())
    served.predict(SimpleNamespace(), pd.DataFrame({"image": [b"x"]}))
    assert used == [1] and torch.get_num_threads() == 2
