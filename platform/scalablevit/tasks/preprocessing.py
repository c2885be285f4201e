"""What a task does to an image before its network sees it, for those who use an exported network."""

from dataclasses import dataclass

from scalablevit.config.section import PlainValues


@dataclass(frozen=True)
class TaskPreprocessing:
    """What differs from task to task; the defaults are those of dense tasks."""

    short_side: int | None = None
    """Pixels that the short side is scaled to; None: it is not."""
    long_side: int | None = None
    """Most pixels of the long side; None: no limit."""
    rounding: str = "half_up"
    """Of the scaled sides."""
    shrink_filter: str = "area"
    antialias: bool = True
    longest_strip: int | None = None
    """The middle of an image that is longer than so many short sides is cut out first."""
    center_crop: int | None = None
    """Side of the square that is cut out after scaling, pixels."""
    score_threshold: float | None = None
    """Detections below it do not count."""
    sliding: PlainValues | None = None
    """Windows that the image is evaluated in, as in the recipe."""
