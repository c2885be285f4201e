"""Draws images with label maps, masks and boxes of objects, with matplotlib."""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from scalablevit.data.labels import IGNORE
from scalablevit.viz.palette import class_color, class_hex, ink_on
from scalablevit.viz.style import DPI, plain

CELL = 2.6
"""Side of an image in a plot, inches."""
ACROSS = round(CELL * DPI)
"""Width in pixels to which wider images are shrunk before they are drawn."""
LABELS, OBJECTS = 0.55, 0.45
"""Opacity of a label map and of an object's mask, 0 to 1."""
NAMED_CLASSES = 6
"""Most classes in a legend: those with the most pixels."""

Image = NDArray[np.float32]
"""(height, width, 3), RGB, 0 to 1."""


def draw_image(axes: Axes, image: Image, size: Sequence[int]) -> None:
    """Draw an image, stretched to the coordinates of `size` (height, width), in which boxes are given."""
    edges = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axes.imshow((image * 255).round().astype(np.uint8), interpolation="nearest", extent=edges)


def resize_for_plot(image: NDArray[Any], size: Sequence[int], interpolation: int = cv2.INTER_AREA) -> NDArray[Any]:
    """Return an image (h, w) or (h, w, 3) resized to `size` (height, width), at most `ACROSS` pixels wide."""
    factor = min(1.0, ACROSS / size[1])
    height, width = (max(1, round(side * factor)) for side in size)
    return cv2.resize(image, (width, height), interpolation=interpolation)


def draw_label_map(axes: Axes, image: Image, mask: NDArray[np.uint8], classes: Sequence[str]) -> None:
    """Draw a label map over its image, with a legend of its largest classes if `classes` is not empty.

    Args:
        axes: the axes to draw into.
        image: the image, of any size.
        mask: class indices (height, width); `IGNORE` stays without a colour.
        classes: class names; empty: no legend.
    """
    indices, counts = np.unique(mask[mask != IGNORE], return_counts=True)
    resized = resize_for_plot(mask, mask.shape, cv2.INTER_NEAREST_EXACT)
    tinted = _blend_colors(
        resize_for_plot(image, mask.shape),
        (resized == index for index in indices),
        indices.tolist(),
        LABELS,
    )
    draw_image(axes, tinted, mask.shape)
    largest = indices[np.argsort(-counts, kind="stable")][:NAMED_CLASSES].tolist()
    if largest and classes:
        patches = [Patch(color=class_hex(index), label=plain(classes[index])) for index in largest]
        axes.legend(handles=patches, fontsize="xx-small", loc="lower left", framealpha=0.6)


def draw_objects(
    axes: Axes, image: Image, size: Sequence[int], masks: Iterable[NDArray[np.uint8]], labels: Sequence[int]
) -> None:
    """Draw objects' masks over their image.

    Args:
        axes: the axes to draw into.
        image: the image, of any size.
        size: height and width of the masks, in whose coordinates boxes are given, too.
        masks: masks of `size`, not zero where the object is; empty: only the image is drawn.
        labels: class index of each object.
    """
    resized = (resize_for_plot(mask, size, cv2.INTER_NEAREST_EXACT) > 0 for mask in masks)
    draw_image(axes, _blend_colors(resize_for_plot(image, size), resized, labels, OBJECTS), size)


def _blend_colors(image: Image, regions: Iterable[NDArray[np.bool_]], labels: Sequence[int], opacity: float) -> Image:
    """Return an image with the class's colour blended over each region (height, width), one after another."""
    tinted = image.copy()
    for region, label in zip(regions, labels, strict=False):  # without masks there are only labels
        tinted[region] = (1 - opacity) * tinted[region] + opacity * np.array(class_color(label), np.float32) / 255
    return tinted


def draw_boxes(
    axes: Axes, boxes: NDArray[np.float32], labels: Sequence[int], classes: Sequence[str], scores: Any = None
) -> None:
    """Draw boxes, with the names of their classes and the scores if `classes` is not empty.

    Args:
        axes: the axes to draw into, whose image `draw_image` has drawn.
        boxes: corners (n, 4) x1, y1, x2, y2 in the coordinates of the axes.
        labels: class index of each box.
        classes: class names; empty: boxes without text.
        scores: score of each box; None: without scores.
    """
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        edge, ink = class_hex(labels[index]), ink_on(class_color(labels[index]))
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=edge, linewidth=1.2))
        if classes:
            score = "" if scores is None else f" {scores[index]:.2f}"
            axes.text(left, top, plain(f"{classes[labels[index]]}{score}"), fontsize="xx-small", color=ink,
                      va="bottom", bbox={"facecolor": edge, "edgecolor": "none", "pad": 0.5})  # fmt: skip
