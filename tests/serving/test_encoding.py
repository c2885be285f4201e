"""Files and arrays become bytes that a registered model decodes to the same picture."""

import cv2
import numpy as np
import pytest

from scalablevit.data.decoding import decode_image
from scalablevit.serving.encoding import image_bytes


def test_an_array_comes_back_exactly():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(image_bytes(picture), 1000), picture)


def test_a_file_is_taken_as_it_is(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.full((4, 4, 3), 99, np.uint8))
    assert image_bytes(tmp_path / "a.jpg") == (tmp_path / "a.jpg").read_bytes()


def test_what_is_no_picture_is_refused():
    with pytest.raises((ValueError, cv2.error)):
        image_bytes(np.zeros((0, 4, 3), np.uint8))
