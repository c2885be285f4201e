"""Draw the picture of docs/your_data.md: an image of the built-in shapes, its mask and its boxes.

    python docs/pictures.py FOLDER

needs the environment of `make setup`. The picture is kept in docs/pictures; run this again when its look changes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from scalablevit.config.data import CocoInstances, MaskPairs, Shapes, Split
from scalablevit.data.instances import decode_masks
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.opening import open_source
from scalablevit.viz.overlays import draw_boxes, draw_labels
from scalablevit.viz.palette import class_colors

NAME = "truth.png"
SHAPES = Shapes(train_images=8, val_images=1, image_size=120)
NUMBER = 6
"""Of the training image that is drawn."""
GAP = 12


def main() -> int:
    """Write the picture into the folder that is given."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        write_shapes(SHAPES, Path(root) / "shapes")
        picture = side_by_side(*truth_panels(Path(root)))
    picture.save(folder / NAME, optimize=True)
    return 0


def truth_panels(root: Path) -> list[Image.Image]:
    """Return three drawings of one image: as it is, with its mask, and with its boxes and instance masks.

    Args:
        root: has the data set in `shapes`.
    """
    masks = MaskPairs(
        source="mask_pairs", root="shapes", classes="segmentation/classes.txt",
        train=Split(images="segmentation/images/train", masks="segmentation/annotations/train"),
        val=Split(images="segmentation/images/val", masks="segmentation/annotations/val"),
    )  # fmt: skip
    objects = CocoInstances(
        source="coco", root="shapes",
        train=Split(images="detection/train", annotations="detection/annotations/instances_train.json"),
        val=Split(images="detection/val", annotations="detection/annotations/instances_val.json"),
    )  # fmt: skip
    return [*_mask_panels(masks, root), _box_panel(objects, root)]


def _mask_panels(data: MaskPairs, root: Path) -> tuple[Image.Image, Image.Image]:
    source = open_source(data, "train", root)
    sample = source.read(NUMBER)
    assert sample.mask is not None  # noqa: S101  # the source has one for each image
    colors = class_colors(len(source.classes))
    legend = [(colors[number], f"{number}: {source.classes[number]}") for number in np.unique(sample.mask)]
    return draw_boxes(sample.image, [], [], []), draw_labels(sample.image, sample.mask, legend, colors)


def _box_panel(data: CocoInstances, root: Path) -> Image.Image:
    source = open_source(data, "train", root)
    sample = source.read(NUMBER)
    objects = sample.instances
    assert objects is not None  # noqa: S101  # annotations are read
    # a mask's class 0 is the background: with it before the others a shape has one colour in the whole picture
    colors = class_colors(1 + len(source.classes))[1:]
    return draw_boxes(
        sample.image, objects.boxes.tolist(), [source.classes[label] for label in objects.labels],
        [colors[label] for label in objects.labels], decode_masks(objects.masks or [], objects.size),
    )  # fmt: skip


def side_by_side(*panels: Image.Image) -> Image.Image:
    """Return the panels in a row on white, tops aligned."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), "white")
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + GAP
    return row


if __name__ == "__main__":
    sys.exit(main())
