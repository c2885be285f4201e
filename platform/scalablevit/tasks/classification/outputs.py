"""Output of batch prediction with a classifier: a table of labels."""

import json

import numpy as np
from numpy.typing import NDArray

from scalablevit.data.names import printable
from scalablevit.tasks.output import PredictionDict, Table


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
