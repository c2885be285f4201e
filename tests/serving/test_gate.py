"""The gain's interval, and what the gate refuses."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from harness.batches import label_batch

from scalablevit.config.promotion import Promotion
from scalablevit.serving import score as scoring
from scalablevit.serving.gate import Gain, failures, metric_of, paired_gain
from scalablevit.serving.score import Score
from scalablevit.tasks.classification.bootstrap import HitStatistics


def per_sample(hits: np.ndarray, first: int = 0) -> HitStatistics:
    made = HitStatistics(1)
    right = torch.eye(2)[torch.from_numpy(hits.astype(np.int64))]  # class 1 is true; predicted where there is a hit
    made.update(
        right, label_batch(labels=torch.ones(len(hits), dtype=torch.int64), indices=torch.arange(len(hits)) + first)
    )
    return made


def hits(share: float, count: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_a_gains_interval_is_that_of_paired_differences():
    ours, theirs = hits(0.8, seed=1), hits(0.7, seed=2)
    gain = paired_gain(per_sample(ours), per_sample(theirs), 4000, 0.95)
    differences = ours.astype(float) - theirs
    half = 1.96 * differences.std() / len(differences) ** 0.5
    assert gain.value == pytest.approx(differences.mean())
    assert (gain.low, gain.high) == pytest.approx((gain.value - half, gain.value + half), abs=0.1 * half)
    narrower = paired_gain(per_sample(ours), per_sample(theirs), 4000, 0.5)
    assert gain.low < narrower.low < narrower.high < gain.high


def test_the_same_predictions_have_no_gain_however_images_are_drawn():
    """Unpaired resampling would give an interval around zero here."""
    same = hits(0.6)
    gain = paired_gain(per_sample(same), per_sample(same), 200, 0.95)
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_the_interval_is_the_same_for_everybody_who_asks():
    pair = per_sample(hits(0.8, seed=1)), per_sample(hits(0.7, seed=2))
    assert paired_gain(*pair, 300, 0.9) == paired_gain(*pair, 300, 0.9)


def test_different_images_are_not_compared():
    with pytest.raises(ValueError, match="different images"):
        paired_gain(per_sample(hits(0.5)), per_sample(hits(0.5), first=1), 100, 0.95)


SCORE = Score(per_sample(np.array([True, True, True, False])), 0, 20.0, "a machine")


@pytest.mark.parametrize(
    ("gate", "gain", "missed"),
    [
        ({}, (0.0, -0.1, 0.1), []),
        ({}, (-0.01, -0.1, 0.1), ["the gain -0.0100 is below the margin +0.0000"]),
        ({"margin": -0.02}, (-0.01, -0.1, 0.1), []),
        ({"margin": 0.01}, (0.005, 0.001, 0.1), ["below the margin +0.0100"]),
        ({"require_significance": True}, (0.05, -0.001, 0.1), ["95% interval starts at -0.0010"]),
        ({"require_significance": True, "confidence": 0.995}, (0.05, -0.001, 0.1), ["99.5% interval starts at"]),
        ({"require_significance": True}, (0.05, 0.001, 0.1), []),
        ({"require_significance": True}, (0.05, float("nan"), float("nan")), ["interval"]),
        ({"min_value": 0.75}, None, []),
        ({"min_value": 0.76}, None, ["the metric 0.7500 is below the minimum 0.7600"]),
        ({"max_latency_ms": 20.0, "max_weights_mb": 3.0}, None, []),
        ({"max_latency_ms": 19.0, "max_weights_mb": 2.9}, None, ["takes 20 ms, more than 19", "3 MB, more than 2.9"]),
        ({"margin": 0.5}, None, []),  # without a champion there is nothing to gain on
    ],
)
def test_what_the_gate_refuses(gate, gain, missed):
    found = failures(Promotion(**gate), SCORE, None if gain is None else Gain(*gain), 3.0)
    assert len(found) == len(missed)
    for said, part in zip(found, missed, strict=True):
        assert part in said


def test_latency_is_measured_with_the_threads_that_were_asked_for_and_a_busy_machine_is_said(monkeypatch):
    used = []
    prediction = SimpleNamespace(to_dict=lambda: used.append(torch.get_num_threads()))
    stage = SimpleNamespace(data=SimpleNamespace(max_pixels=100, mean=(0.5, 0.5, 0.5)))
    trained = SimpleNamespace(predict=lambda _: prediction, stage=stage, device=torch.device("cpu"))
    monkeypatch.setattr(scoring, "read_image", lambda *_: None)
    monkeypatch.setattr(scoring.os, "sched_getaffinity", lambda _: {0, 1})
    before = torch.get_num_threads()
    for threads, load, said in ((1, 1.0, ""), (2, 1.0, "a load of 1.0 from others on 2 cores"),
                                (1, 2.5, "the machine was busy: a load of 2.5 from others on 2 cores")):  # fmt: skip
        monkeypatch.setattr(scoring, "other_load", lambda load=load: load)
        used.clear()
        _, busy = scoring._latency_ms(trained, [SimpleNamespace(image=None)], threads)
        assert set(used) == {threads} and said in busy and bool(said) == bool(busy)
        assert scoring._measured_on(trained.device, threads).endswith(f", {threads} thread" + "s" * (threads > 1))
    assert torch.get_num_threads() == before
    assert scoring.other_load() >= 0


def test_a_metric_that_is_no_number_never_passes():
    nothing = HitStatistics(1)
    nothing.metric = lambda chosen: float("nan")
    score = Score(nothing, 0, 1.0, "a machine")
    assert np.isnan(metric_of(score)) and failures(Promotion(), score, None, 1.0)
