"""Export of a classifier: as one network, with logits (N, classes)."""

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import MiddleOfStrip
from scalablevit.tasks.classification.task import sections
from scalablevit.tasks.export import Export, Size
from scalablevit.tasks.preprocessing import TaskPreprocessing


def describe_preprocessing(stage: Stage) -> TaskPreprocessing:
    """Return how images are resized and cropped."""
    _, data = sections(stage)
    return TaskPreprocessing(
        short_side=data.eval_resize,
        rounding="half_even",
        shrink_filter="bilinear_antialiased" if data.antialias else "bilinear",
        antialias=data.antialias,
        longest_strip=MiddleOfStrip.LONGEST,
        center_crop=data.image_size,
    )


def _evaluation_crop(stage: Stage) -> Size:
    _, data = sections(stage)
    return data.image_size, data.image_size


EXPORT = Export(_evaluation_crop)
