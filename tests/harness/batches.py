"""Batches of which a test needs only a part."""

from typing import Any

from scalablevit.data.batch import DetectionEvalBatch, LabelBatch, MaskBatch


def label_batch(**fields: Any) -> LabelBatch:
    """Images with labels; without images if none are given."""
    return LabelBatch(**{"images": [], "samples": len(fields["labels"]), **fields})


def mask_batch(**fields: Any) -> MaskBatch:
    """Images with label maps; without images if none are given."""
    return MaskBatch(**{"images": [], "samples": len(fields["masks"]), **fields})


def detection_batch(**fields: Any) -> DetectionEvalBatch:
    """Images with what they show; without images if none are given."""
    return DetectionEvalBatch(**{"images": [], "samples": len(fields["instances"]), **fields})
