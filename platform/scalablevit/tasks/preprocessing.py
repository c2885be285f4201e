"""How a task prepares an image for its network, for users of an exported network."""

from dataclasses import dataclass

from scalablevit.config.section import PlainValues


@dataclass(frozen=True)
class TaskPreprocessing:
    """Settings that differ from task to task; the defaults are those of segmentation and detection."""

    short_side: int | None = None
    """Pixels that the short side is scaled to; None: it is not scaled."""
    long_side: int | None = None
    """Most pixels of the long side; None: no limit."""
    rounding: str = "half_up"
    """How the scaled sides are rounded: `half_up` or `half_even`."""
    shrink_filter: str = "area"
    """Interpolation of an image that shrinks: `area`, `bilinear` or `bilinear_antialiased`."""
    antialias: bool = True
    """Whether that interpolation is antialiased."""
    longest_strip: int | None = None
    """An image whose long side exceeds this many short sides is first cropped to its middle; None: it is not."""
    center_crop: int | None = None
    """Side of the square that is cropped after scaling, in pixels; None: no crop."""
    score_threshold: float | None = None
    """Detections with a lower score, 0 to 1, are dropped; None: the task has no scores."""
    sliding: PlainValues | None = None
    """Sliding windows of evaluation, as in the recipe; None: whole images."""
