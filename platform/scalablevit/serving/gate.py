"""Decides whether a candidate becomes the champion: a paired bootstrap over images, and the recipe's limits."""

from dataclasses import dataclass

import numpy as np

from scalablevit.config.promotion import Promotion
from scalablevit.serving.score import Score
from scalablevit.tasks.sample_statistics import SampleStatistics

SEED = 0
"""Seed of the bootstrap: a repeated comparison draws the same images."""


@dataclass(frozen=True)
class Gain:
    """How much better the candidate's metric is than the champion's, as fractions."""

    value: float
    low: float
    high: float
    """Ends `low` and `high` of the confidence interval."""


def paired_gain(candidate: SampleStatistics, champion: SampleStatistics, resamples: int, confidence: float) -> Gain:
    """Return the gain and its percentile interval, both models resampled by the same images.

    The interval is for other images of the same kind; the effect of another training seed is not in it.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.

    Args:
        candidate: the candidate's per-sample statistics.
        champion: the champion's, of the same images.
        resamples: number of bootstrap samples, each as large as the set of images.
        confidence: coverage of the interval, a fraction such as 0.95.

    Raises:
        ValueError: the statistics are of different images.
    """
    if candidate.indices != champion.indices:
        raise ValueError("candidate and champion were scored on different images")
    images = len(candidate.indices)
    everything = np.arange(images)
    generator = np.random.default_rng(SEED)
    gains = np.empty(resamples)
    for index in range(resamples):
        chosen = generator.integers(images, size=images)
        gains[index] = candidate.metric(chosen) - champion.metric(chosen)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(gains, (tail, 1 - tail))  # nan: a bootstrap sample without any object
    return Gain(candidate.metric(everything) - champion.metric(everything), float(low), float(high))


def metric_of(score: Score) -> float:
    """Return the metric on all images, as a fraction."""
    return score.per_sample.metric(np.arange(len(score.per_sample.indices)))


def failures(gate: Promotion, score: Score, gain: Gain | None, weights_mb: float) -> list[str]:
    """Return the reasons why a candidate does not pass, as sentences; empty when it passes.

    Args:
        gate: the recipe's section `promotion`.
        score: the candidate's score.
        gain: gain over the champion; None when there is no champion: the limits alone decide.
        weights_mb: size of the candidate's weights, MB (10^6 bytes).
    """
    missed = []
    metric = metric_of(score)
    if gain is not None and gate.require_significance and not gain.low >= gate.margin:
        interval = f"the gain's {100 * gate.confidence:g}% interval"
        missed.append(f"{interval} starts at {gain.low:+.4f}, below the margin {gate.margin:+.4f}")
    elif gain is not None and not gain.value >= gate.margin:
        missed.append(f"the gain {gain.value:+.4f} is below the margin {gate.margin:+.4f}")
    if not metric >= (gate.min_value or 0.0):  # also nan, without any ground truth
        missed.append(f"the metric {metric:.4f} is below the minimum {gate.min_value or 0.0:.4f}")
    if gate.max_latency_ms is not None and score.latency_ms > gate.max_latency_ms:
        busy = f" ({score.busy})" if score.busy else ""
        missed.append(f"a prediction takes {score.latency_ms:.3g} ms, more than {gate.max_latency_ms:g} ms{busy}")
    if gate.max_weights_mb is not None and weights_mb > gate.max_weights_mb:
        missed.append(f"the weights are {weights_mb:.3g} MB, more than {gate.max_weights_mb:g} MB")
    return missed
