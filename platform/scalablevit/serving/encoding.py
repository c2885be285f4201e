"""For clients of a registered model: turns files and arrays into the bytes that the model takes."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def image_bytes(image: Path | NDArray[np.uint8]) -> bytes:
    """Return the encoded bytes of an image.

    Args:
        image: a file, whose bytes are returned as they are, or an RGB array uint8 (height, width, 3), encoded as PNG.

    Raises:
        ValueError: OpenCV cannot encode the array.
    """
    if isinstance(image, Path):
        return image.read_bytes()
    encoded, content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise ValueError(f"not an RGB image: shape {image.shape}, {image.dtype}")
    return bytes(content)
