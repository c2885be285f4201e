"""Requests in any form become image bytes, or one sentence that repeats none of them."""

import base64

import numpy as np
import pandas as pd
import pytest

from scalablevit.config.errors import UserError
from scalablevit.serving.request import Limits, RefusedRequest, read_request

IMAGE = b"\xff\xd8 an image \xff\xd9" * 50
TEXT = base64.b64encode(IMAGE).decode()
SMALL = Limits(max_images=3, max_bytes=1000)


@pytest.mark.parametrize(
    "model_input",
    [
        [IMAGE], IMAGE, TEXT, [TEXT], (bytearray(IMAGE),), np.array([TEXT]), np.array([[TEXT]]), np.array(TEXT),
        np.array([IMAGE], object), pd.Series([IMAGE]), pd.DataFrame([TEXT]), pd.DataFrame({"image": [IMAGE]}),
        {"image": np.array([TEXT])}, {"image": [IMAGE]}, [[TEXT]],
    ],
)  # fmt: skip
def test_every_form_gives_the_same_bytes(model_input):
    assert read_request(model_input, SMALL) == [IMAGE]


@pytest.mark.parametrize("model_input", [[], pd.DataFrame([]), np.array([]), pd.DataFrame({"image": []})])
def test_no_image_is_no_mistake(model_input):
    assert read_request(model_input, SMALL) == []


@pytest.mark.parametrize(
    ("model_input", "sentence"),
    [
        (pd.DataFrame([[TEXT, TEXT]]), "2 columns"),
        ([[TEXT, TEXT]], "2 columns"),
        (np.array([[TEXT, TEXT]]), "2 columns"),
        ({"a": [TEXT], "b": [TEXT]}, "2 columns"),
        ({}, "0 columns"),
        ({"a": TEXT}, "a str, not a list of images"),
        ([TEXT] * 4, "4 images are more than the 3 of a request (SCALABLEVIT_SERVE_MAX_IMAGES)"),
        ([IMAGE] * 2, "image 1: with it the images have 1400 bytes, more than the 1000 of a request"),
        ([TEXT, TEXT], "image 1: with it"),
        ([TEXT[:-3]], "image 0: not base64"),
        (["é" * 40], "image 0: not base64"),
        ([3], "image 0: a int, not an image file"),
        ([None], "image 0: a NoneType"),
        ([{"image": TEXT}], "image 0: a dict"),
    ],
)
def test_a_refusal_is_one_short_sentence(model_input, sentence):
    with pytest.raises(RefusedRequest) as refused:
        read_request(model_input, SMALL)
    said = str(refused.value)
    assert sentence in said and len(said) < 250 and TEXT[:12] not in said and "\n" not in said


def test_limits_are_whole_numbers():
    assert Limits.from_environment({"SCALABLEVIT_SERVE_MAX_PIXELS": "5"}) == Limits(max_pixels=5)
    for wrong in ("", "0", "-1", "1e6"):
        with pytest.raises(UserError, match="SCALABLEVIT_SERVE_MAX_BYTES"):
            Limits.from_environment({"SCALABLEVIT_SERVE_MAX_BYTES": wrong})
