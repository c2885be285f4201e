"""Whether a candidate becomes the champion: a paired bootstrap over images, and the recipe's limits."""

from dataclasses import dataclass

import numpy as np

from scalablevit.config.promotion import Promotion
from scalablevit.serving.score import Score
from scalablevit.tasks.sample_statistics import SampleStatistics

SEED = 0
"""Of the bootstrap: the same images drawn for everybody who asks again."""


@dataclass(frozen=True)
class Gain:
    """Of the candidate over the champion, as fractions."""

    value: float
    low: float
    high: float
    """Ends of the confidence interval."""


def paired_gain(candidate: SampleStatistics, champion: SampleStatistics, resamples: int, confidence: float) -> Gain:
    """Gain and its percentile interval (Efron 1979), both models resampled by the same images.

    The interval is for other images of the same kind; what another training seed would do is not in it.

    Raises:
        ValueError: the statistics are of different images.
    """
    if candidate.indices != champion.indices:
        raise ValueError("candidate and champion were scored on different images")
    images = len(candidate.indices)
    everything = np.arange(images)
    draws = np.random.default_rng(SEED)
    gains = np.empty(resamples)
    for number in range(resamples):
        chosen = draws.integers(images, size=images)
        gains[number] = candidate.metric(chosen) - champion.metric(chosen)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(gains, (tail, 1 - tail))  # nan: a draw without any object
    return Gain(candidate.metric(everything) - champion.metric(everything), float(low), float(high))


def metric_of(score: Score) -> float:
    """The metric on all images."""
    return score.per_sample.metric(np.arange(len(score.per_sample.indices)))


def failures(gate: Promotion, score: Score, gain: Gain | None, weights_mb: float) -> list[str]:
    """What a candidate misses; empty when it passes.

    Args:
        gate: the recipe's section.
        score: the candidate's.
        gain: over the champion; None when there is none: the limits alone decide.
        weights_mb: size of the candidate's weights, 10^6 bytes.
    """
    found = []
    metric = metric_of(score)
    if gain is not None and gate.require_significance and not gain.low >= gate.margin:
        interval = f"the gain's {100 * gate.confidence:g}% interval"
        found.append(f"{interval} starts at {gain.low:+.4f}, below the margin {gate.margin:+.4f}")
    elif gain is not None and not gain.value >= gate.margin:
        found.append(f"the gain {gain.value:+.4f} is below the margin {gate.margin:+.4f}")
    if not metric >= (gate.min_value or 0.0):  # also: no truth at all
        found.append(f"the metric {metric:.4f} is below the minimum {gate.min_value or 0.0:.4f}")
    if gate.max_latency_ms is not None and score.latency_ms > gate.max_latency_ms:
        busy = f" ({score.busy})" if score.busy else ""
        found.append(f"an answer takes {score.latency_ms:.3g} ms, more than {gate.max_latency_ms:g} ms{busy}")
    if gate.max_weights_mb is not None and weights_mb > gate.max_weights_mb:
        found.append(f"the weights are {weights_mb:.3g} MB, more than {gate.max_weights_mb:g} MB")
    return found
