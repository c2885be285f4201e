"""Whether a detector's anchors have the size of the data's objects."""

import math

from scalablevit.config.data import CocoInstances
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.inspection.statistics import DataStatistics

LEVELS = 5
"""Of the pyramid; the side of the anchors doubles from level to level."""
LEAST_OVERLAP = 0.3
"""Intersection over union below which a square in the middle of another is background to a region proposal network
(Ren et al., arXiv 1506.01497, section 3.1.2)."""


def anchor_warnings(stage: Stage, statistics: DataStatistics) -> tuple[str, ...]:
    """Warn where the median object overlaps no anchor as much as it takes to be learned as an object.

    Args:
        stage: of detection.
        statistics: of its data.
    """
    task, data, boxes = stage.task, stage.data, statistics.train.boxes
    side = boxes.scaled_side if boxes is not None else None
    if not isinstance(task, Detection) or not isinstance(data, CocoInstances) or side is None:
        return ()
    smallest, largest = task.anchor_size, task.anchor_size * 2 ** (LEVELS - 1)
    reach = math.sqrt(LEAST_OVERLAP)
    if smallest * reach <= side <= largest / reach:
        return ()
    small = side < smallest
    closest = f"the smallest anchors {smallest}" if small else f"the largest anchors {largest}"
    # the second level fits the median, so that the first is for what is smaller
    fitting = min(512, max(4, 2 ** round(math.log2(side / 2))))
    scaled = f", or a {'larger' if small else 'smaller'} data.short_side ({data.short_side})"
    return (
        f"the median object of the training images is {side:.3g} pixels wide and high in the scaled image, and "
        f"{closest}: such objects are hardly learned; set task.anchor_size={fitting}{scaled}",
    )
