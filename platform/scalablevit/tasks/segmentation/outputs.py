"""Output of batch prediction with a segmentation model: masks, overlays, and tables of shares and classes."""

import base64
import csv
import io
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalablevit.data.names import printable
from scalablevit.tasks.output import MASKS, OVERLAYS, PredictionDict, Table, picture_path, refuse_other_size
from scalablevit.viz.overlays import draw_labels
from scalablevit.viz.palette import class_colors, class_hex


class Masks(Table):
    """Writes palette PNGs of class indices, overlays, `shares.csv` and `classes.csv`."""

    name = "shares.csv"
    header = ("file", "class", "share")

    def __enter__(self) -> Self:
        with (self.folder / "classes.csv").open("w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file, lineterminator="\n")
            lines.writerow(("number", "class", "color"))
            for index, name in enumerate(self.classes):
                lines.writerow((index, name, class_hex(index)))
        return super().__enter__()

    def write_pictures(self, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
        """Write the mask as `masks/<name>.png`, and over its image as `overlays/<name>.jpg`.

        Returns:
            The prediction's `classes` and `shares`.
        """
        palette = Image.fromarray(_read_labels(prediction))
        # makes it a palette image, pixels unchanged
        palette.putpalette([part for color in class_colors(len(self.classes)) for part in color])
        palette.save(picture_path(self.folder, MASKS, name, ".png"))
        drawn = draw_prediction(image, prediction, self.classes)
        drawn.save(picture_path(self.folder, OVERLAYS, name, ".jpg"), quality=90)
        return {"classes": prediction["classes"], "shares": prediction["shares"]}

    def add(self, name: str, prediction: PredictionDict) -> None:
        """Add a row for each class in the image, the largest first."""
        for label, share in zip(prediction["classes"], prediction["shares"], strict=True):
            self.write(printable(name), label, f"{share:.6f}")


def draw_prediction(image: NDArray[np.uint8], prediction: PredictionDict, classes: Sequence[str]) -> Image.Image:
    """Return a label map drawn over its image, with a legend of the classes that occur below.

    Args:
        image: RGB (height, width, 3).
        prediction: for this image.
        classes: names, by class index from 0.

    Raises:
        UserError: the prediction is for an image of another size.
    """
    labels, colors = _read_labels(prediction), class_colors(len(classes))
    refuse_other_size(labels.shape, image)
    legend = [
        (colors[classes.index(name)], f"{name}  {share:.1%}")
        for name, share in zip(prediction["classes"], prediction["shares"], strict=True)
    ]
    return draw_labels(image, labels, legend, colors)


def _read_labels(prediction: PredictionDict) -> NDArray[np.uint8]:
    """Return the label map of a prediction, (height, width)."""
    return np.array(Image.open(io.BytesIO(prediction["mask_png"])), np.uint8)


def parse_prediction(received: PredictionDict, size: tuple[int, int]) -> PredictionDict:
    """Return a server's prediction with the types of `SegmentationPrediction.to_dict`.

    Args:
        received: with the PNG in base64.
        size: height and width of the image, pixels.

    Raises:
        ValueError, TypeError, KeyError: it is no prediction for an image of that size.
    """
    content = base64.b64decode(received["mask_png"])
    with Image.open(io.BytesIO(content), formats=("PNG",)) as mask:
        if mask.size != size[::-1] or mask.mode != "L":
            raise ValueError(f"a mask {mask.mode} of {mask.size}")
        mask.load()
    shares = [float(share) for share in received["shares"]]
    classes = list(received["classes"])
    if len(classes) != len(shares):
        raise ValueError("classes and shares of different lengths")
    return {"mask_png": content, "classes": classes, "shares": shares}
