"""The sides of a detector's anchors, and whether they have the size of the data's objects."""

import math

from scalablevit.config.data import CocoInstances
from scalablevit.config.recipe import Stage
from scalablevit.config.task import Detection
from scalablevit.inspection.statistics import DataStatistics

LEVELS = 5
"""Levels of the pyramid; the side of the anchors doubles from level to level."""
SIDES_PER_LEVEL = {"mask_rcnn": 1, "retinanet": 3}
"""Sides of anchors of a level, by head, each 2 ** (1/3) of the one before."""
BACKGROUND_OVERLAP = {"mask_rcnn": 0.3, "retinanet": 0.4}
"""Intersection over union below which an anchor counts as background, by head (torchvision's defaults). The best anchor
of an object is learned nevertheless, but it alone."""
SMALLEST, LARGEST = 4, 512
"""Bounds of `task.anchor_size`."""


def anchor_sides(task: Detection) -> tuple[tuple[int, ...], ...]:
    """Return the sides of the anchors in pixels, by level of the pyramid, the finest first."""
    thirds = range(SIDES_PER_LEVEL[task.head])
    return tuple(
        tuple(int(task.anchor_size * 2**level * 2 ** (third / 3)) for third in thirds) for level in range(LEVELS)
    )


def anchor_warnings(stage: Stage, statistics: DataStatistics) -> tuple[str, ...]:
    """Return a warning where the median object overlaps no anchor enough to be more than background.

    Args:
        stage: the stage.
        statistics: of its data.
    """
    task, data, boxes = stage.task, stage.data, statistics.train.boxes
    side = boxes.scaled_side if boxes is not None else None
    if not isinstance(task, Detection) or not isinstance(data, CocoInstances) or side is None:
        return ()
    overlap = BACKGROUND_OVERLAP[task.head]
    sides = anchor_sides(task)
    smallest, largest = sides[0][0], sides[-1][-1]
    # a square in the middle of another one covers the square of the ratio of their sides
    if smallest * math.sqrt(overlap) <= side <= largest / math.sqrt(overlap):
        return ()
    is_small = side < smallest
    # the second level fits the median, so that the first one is for what is smaller
    fitting = min(LARGEST, max(SMALLEST, 2 ** round(math.log2(side / 2))))
    advice = [f"set task.anchor_size={fitting}"] * (fitting != task.anchor_size)
    advice.append(f"take {'larger' if is_small else 'smaller'} images (data.short_side: {data.short_side})")
    return (
        f"the median object of the training images has a side of {side:.3g} pixels in the scaled image (the square "
        f"root of its box's area), and {'the smallest' if is_small else 'the largest'} anchors of "
        f"{smallest if is_small else largest}: an overlap below {overlap}, with which objects are learned badly; "
        f"{', or '.join(advice)}",
    )
