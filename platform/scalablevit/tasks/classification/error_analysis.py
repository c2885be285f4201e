"""Error analysis of a classifier: the loss of each image, and which class is taken for which."""

from collections import Counter
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scalablevit.data.batch import LabelBatch
from scalablevit.tasks.error_analysis import ErrorDetails, SampleScore, triples


class ClassErrorAnalysis:
    """Classification.

    `details()["confusions"]`: [label, answer, images] by class numbers, those that occur.
    """

    measure = "by the cross-entropy of the label, the highest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: Tensor, batch: LabelBatch) -> list[SampleScore]:
        """Add logits (N, classes) against labels (N,)."""
        labels = batch.label
        losses = F.cross_entropy(predictions, labels, reduction="none").tolist()
        shares, answers = predictions.softmax(dim=1).max(dim=1)
        scores = []
        for number, label, answer, share, loss in zip(
            batch.index.tolist(), labels.tolist(), answers.tolist(), shares.tolist(), losses, strict=True
        ):
            self._pairs[label, answer] += 1
            words = f"label {self.classes[label]}, predicted {self.classes[answer]} {share:.2f}; loss {loss:.2f}"
            scores.append(SampleScore(number, loss, words, "right" if answer == label else "wrong"))
        return scores

    def details(self) -> ErrorDetails:
        """See the class."""
        return {"confusions": triples(self._pairs)}
