"""Error analysis of a segmentation model: the IoU of each image, and which class is taken for which."""

from collections import Counter
from collections.abc import Collection, Sequence

from torch import Tensor

from scalablevit.data.batch import MaskBatch
from scalablevit.tasks.error_analysis import ErrorDetails, Outcome, SampleScore, triples
from scalablevit.tasks.segmentation.confusion import pixels_by_pair

OVERLAP = 0.5
"""IoU from which on a class of an image is right."""


class MaskErrorAnalysis:
    """Segmentation.

    `details()["confusions"]`: [label, answer, pixels] by class numbers, those that occur.
    """

    measure = "by the mean IoU over the classes that are labelled or predicted in an image, the lowest first"

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        self._pairs: Counter[tuple[int, int]] = Counter()

    def update(self, predictions: list[Tensor], batch: MaskBatch) -> list[SampleScore]:
        """Add label maps (height, width) against `batch.mask`; pixels whose mask is 255 do not count."""
        scores = []
        for number, predicted, mask in zip(batch.index.tolist(), predictions, batch.mask, strict=True):
            pixels = pixels_by_pair(mask, predicted, len(self.classes))
            met = pixels.nonzero().tolist()
            pairs = Counter({(label, answer): int(pixels[label, answer]) for label, answer in met})
            self._pairs += pairs
            scores.append(self._score(number, pairs))
        return scores

    def details(self) -> ErrorDetails:
        """See the class."""
        return {"confusions": triples(self._pairs)}

    def _score(self, number: int, pairs: Counter[tuple[int, int]]) -> SampleScore:
        """Return the score of an image from the pixels of each pair of label and prediction."""
        overlaps = {}
        for number_of_class in {each for pair in pairs for each in pair}:
            whole = sum(count for pair, count in pairs.items() if number_of_class in pair)
            overlaps[number_of_class] = pairs[number_of_class, number_of_class] / whole
        if not overlaps:
            return SampleScore(number, 0.0, "no labelled pixel")
        mean = sum(overlaps.values()) / len(overlaps)
        worst = min(overlaps, key=overlaps.__getitem__)
        words = f"mean IoU {mean:.2f} over {len(overlaps)} classes; lowest {self.classes[worst]} {overlaps[worst]:.2f}"
        return SampleScore(number, 1 - mean, words, _outcome(overlaps.values()))


def _outcome(overlaps: Collection[float]) -> Outcome:
    """Return what the IoUs of an image's classes come to."""
    right = sum(each >= OVERLAP for each in overlaps)
    return "right" if right == len(overlaps) else "partly" if right else "wrong"
