"""Output of batch prediction with a classifier: a table of labels."""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scalablevit.data.names import printable
from scalablevit.tasks.output import Answer, Table
from scalablevit.viz.overlays import draw_legend
from scalablevit.viz.palette import class_color


class Labels(Table):
    """Writes `labels.csv`: the class, its probability, and the five most probable classes as one JSON object."""

    name = "labels.csv"
    header = ("file", "label", "probability", "top5")

    def write_pictures(self, name: str, image: NDArray[np.uint8], answer: Answer) -> Answer:
        """Draw nothing; return the answer."""
        return answer

    def add(self, name: str, answer: Answer) -> None:
        """Add the row of an image."""
        top = {label: round(value, 6) for label, value in answer["probabilities"].items()}
        self.write(
            printable(name), answer["class"], f"{answer['probability']:.6f}", json.dumps(top, ensure_ascii=False)
        )


def draw_answer(image: NDArray[np.uint8], answer: Answer, classes: Sequence[str]) -> Image.Image:
    """Return an image with its most probable classes below.

    Args:
        image: RGB (height, width, 3).
        answer: for this image.
        classes: names, in the order of the network's outputs.
    """
    top = answer["probabilities"].items()
    return draw_legend(image, [(class_color(classes.index(name)), f"{name}  {value:.1%}") for name, value in top])


def read_answer(received: Answer, _size: tuple[int, int]) -> Answer:
    """Return a server's answer with the types of `ClassificationPrediction.answer`.

    Raises:
        ValueError, TypeError, KeyError: it is no answer of a classifier.
    """
    probabilities = {str(name): float(value) for name, value in received["probabilities"].items()}
    return {
        "class": received["class"],
        "probability": float(received["probability"]),
        "probabilities": probabilities,
    }
