"""Error analysis of a classifier: the loss of each image, and which class is taken for which."""

from collections import Counter
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.tasks.error_analysis import ErrorDetails, SampleScore, confusion_triples


class ClassErrorAnalysis:
    """Error analysis by the cross-entropy of each image; implements `tasks.error_analysis.ErrorAnalysis`.

    `details()["confusions"]` holds [label, prediction, images] by class indices, pairs that occur.
    """

    measure = "by the cross-entropy of the label, the highest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: Tensor, batch: LabelBatch) -> list[SampleScore]:
        """Add logits (N, classes) with labels (N,); return the score of each image."""
        labels = batch.labels
        losses = F.cross_entropy(predictions, labels, reduction="none").tolist()
        probabilities, predicted = predictions.softmax(dim=1).max(dim=1)
        scores = []
        for index, label, best, probability, loss in zip(
            batch.indices.tolist(), labels.tolist(), predicted.tolist(), probabilities.tolist(), losses, strict=True
        ):
            self._pairs[label, best] += 1
            summary = f"label {self.classes[label]}, predicted {self.classes[best]} {probability:.2f}; loss {loss:.2f}"
            scores.append(SampleScore(index, loss, summary, "right" if best == label else "wrong"))
        return scores

    def details(self) -> ErrorDetails:
        """Return the confusions of all images."""
        return {"confusions": confusion_triples(self._pairs)}
