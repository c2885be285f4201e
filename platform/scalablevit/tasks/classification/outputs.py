"""Output of batch prediction with a classifier: a table of labels."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalablevit.data.names import printable
from scalablevit.tasks.output import PredictionDict, Table
from scalablevit.viz.overlays import draw_legend
from scalablevit.viz.palette import class_color


class Labels(Table):
    """Writes `labels.csv`: the class, its probability, and the five most probable classes as one JSON object."""

    name = "labels.csv"
    header = ("file", "label", "probability", "top5")

    def write_pictures(self, name: str, image: NDArray[np.uint8], prediction: PredictionDict) -> PredictionDict:
        """Draw nothing; return the prediction."""
        return prediction

    def add(self, name: str, prediction: PredictionDict) -> None:
        """Add the row of an image."""
        top = {label: round(value, 6) for label, value in prediction["probabilities"].items()}
        self.write(
            printable(name),
            prediction["class"],
            f"{prediction['probability']:.6f}",
            json.dumps(top, ensure_ascii=False),
        )


def draw_prediction(image: NDArray[np.uint8], prediction: PredictionDict, classes: Sequence[str]) -> Image.Image:
    """Return an image with its most probable classes below.

    Args:
        image: RGB (height, width, 3).
        prediction: for this image.
        classes: names, in the order of the network's outputs.
    """
    top = prediction["probabilities"].items()
    return draw_legend(image, [(class_color(classes.index(name)), f"{name}  {value:.1%}") for name, value in top])


def parse_prediction(received: PredictionDict, _size: tuple[int, int]) -> PredictionDict:
    """Return a server's prediction with the types of `ClassificationPrediction.to_dict`.

    Raises:
        ValueError, TypeError, KeyError: it is no prediction of a classifier.
    """
    probabilities = {str(name): float(value) for name, value in received["probabilities"].items()}
    return {
        "class": received["class"],
        "probability": float(received["probability"]),
        "probabilities": probabilities,
    }
