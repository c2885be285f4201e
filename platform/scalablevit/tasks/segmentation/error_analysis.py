"""Error analysis of a segmentation model: the IoU of each image, and which class is taken for which."""

from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome, SampleScore, confusion_triples
from scalablevit.tasks.segmentation.confusion import pixels_by_pair

OVERLAP = 0.5
"""A class is right in an image where its IoU is at least this, 0 to 1."""


class MaskErrorAnalysis:
    """Error analysis by the mean IoU of each image; implements `tasks.error_analysis.ErrorAnalysis`.

    `details()["confusions"]` holds [label, prediction, pixels] by class indices, pairs that occur.
    """

    measure = "by the mean IoU over the classes that are labelled or predicted in an image, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: list[Tensor], batch: MaskBatch) -> list[SampleScore]:
        """Add label maps (height, width) with `batch.masks`; return the score of each image.

        Pixels whose mask is 255 do not count.
        """
        scores = []
        for index, predicted, mask in zip(batch.indices.tolist(), predictions, batch.masks, strict=True):
            pixels = pixels_by_pair(mask, predicted, len(self.classes))
            nonzero = pixels.nonzero().tolist()
            pairs = Counter({(label, prediction): int(pixels[label, prediction]) for label, prediction in nonzero})
            self._pairs += pairs
            scores.append(self._score(index, pairs))
        return scores

    def details(self) -> ErrorDetails:
        """Return the confusions of all images."""
        return {"confusions": confusion_triples(self._pairs)}

    def _score(self, index: int, pairs: Counter[tuple[int, int]]) -> SampleScore:
        """Return the score of an image from the pixels of each pair of label and prediction."""
        ious = {}
        for class_index in {label for pair in pairs for label in pair}:
            union = sum(count for pair, count in pairs.items() if class_index in pair)
            ious[class_index] = pairs[class_index, class_index] / union
        if not ious:
            return SampleScore(index, 0.0, "no labelled pixel")
        mean = sum(ious.values()) / len(ious)
        worst = min(ious, key=ious.__getitem__)
        summary = f"mean IoU {mean:.2f} over {len(ious)} classes; lowest {self.classes[worst]} {ious[worst]:.2f}"
        return SampleScore(index, 1 - mean, summary, _outcome(ious.values()))


def _outcome(ious: Collection[float]) -> Outcome:
    """Return the verdict on an image from the IoUs of its classes."""
    right = sum(iou >= OVERLAP for iou in ious)
    return "right" if right == len(ious) else "partly" if right else "wrong"
