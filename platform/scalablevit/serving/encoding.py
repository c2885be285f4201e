"""For clients of a registered model: files and arrays to the bytes that it takes."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def image_bytes(image: Path | NDArray[np.uint8]) -> bytes:
    """Encoded bytes of an image.

    Args:
        image: a file, whose bytes are taken as they are, or an RGB array (height, width, 3), encoded as PNG.
    """
    if isinstance(image, Path):
        return image.read_bytes()
    encoded, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise ValueError(f"not an RGB image: shape {image.shape}, {image.dtype}")
    return bytes(content)
