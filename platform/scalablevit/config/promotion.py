"""The recipe's promotion section: what a candidate must show before it becomes the champion."""

from typing import Annotated, Literal

from pydantic import Field

from scalablevit.config.section import Section

TOP5_CLASSES = 6
"""Fewest classes with which top-5 accuracy is reported: with five or fewer, every prediction would be correct."""


class Promotion(Section):
    """The gate of `pipelines/promote.py`. Never part of a run's identity."""

    metric: Literal["top1", "top5", "miou", "macc", "aacc", "box_ap", "mask_ap"] | None = None
    """Metric that is compared; null: top1, miou or box_ap."""
    margin: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """Least gain over the champion, as a fraction (0.01: one point); negative: it may be worse by so much."""
    require_significance: bool = False
    """Ask the whole confidence interval of the gain to reach the margin, not the gain alone."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of that interval."""
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Draws of the bootstrap that the interval comes from."""
    min_value: Annotated[float, Field(ge=0, le=1)] | None = None
    """Least value of the metric itself; null: none."""
    max_latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Longest median time of one prediction (one image, on the machine that promotes), milliseconds; null: none."""
    max_weights_mb: Annotated[float, Field(gt=0)] | None = None
    """Largest file of weights, 10^6 bytes; null: none."""
