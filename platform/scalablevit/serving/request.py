"""Reads the requests of a served model: encoded images, within limits."""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from scalablevit.config.errors import UserError

FORM = "send one column of image files, in JSON as base64"
_BYTES = (bytes, bytearray, memoryview)


class RefusedRequest(Exception):
    """A request that the model refuses; the message is one sentence and repeats nothing of the images."""


@dataclass(frozen=True)
class Limits:
    """Limits of a request; each is set by the environment variable `SCALABLEVIT_SERVE_` and its name in capitals."""

    max_pixels: int = 64_000_000
    """Most pixels of an image; the recipe's `data.max_pixels` holds, too."""
    max_images: int = 64
    """Most images of a request."""
    max_bytes: int = 128 * 2**20
    """Most bytes of the image files of a request, together."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Return the limits that the environment sets, and the defaults for the others.

        Raises:
            UserError: a variable is no positive whole number.
        """
        limits = {}
        for name in cls.__dataclass_fields__:
            text = environment.get(variable(name))
            if text is not None:
                if not (text.isascii() and text.isdecimal() and int(text)):
                    raise UserError(
                        f"{text!r} is not a positive whole number", where=variable(name), fix="as 64000000, or unset it"
                    )
                limits[name] = int(text)
        return cls(**limits)


def variable(limit: str) -> str:
    """Return the name of the environment variable of a limit."""
    return f"SCALABLEVIT_SERVE_{limit.upper()}"


def read_request(model_input: Any, limits: Limits) -> list[bytes]:
    """Return the encoded images of a request, in any of MLflow's forms.

    Args:
        model_input: a table of one column (`dataframe_split`, `dataframe_records`, CSV, Parquet), a list or array
            (`inputs`, `instances`), or a dict with one such column. Each value is bytes, or text in base64.
        limits: the server's limits.

    Raises:
        RefusedRequest: the request has another form, or is above a limit.
    """
    values = _only_column(model_input)
    if len(values) > limits.max_images:
        raise RefusedRequest(
            f"{len(values)} images are more than the {limits.max_images} of a request ({variable('max_images')})"
        )
    size = 0
    for index, value in enumerate(values):
        size += 3 * len(value) // 4 if isinstance(value, str) else len(value) if isinstance(value, _BYTES) else 0
        if size > limits.max_bytes:
            raise RefusedRequest(
                f"image {index}: with it the images have {size} bytes, more than the {limits.max_bytes} of a request "
                f"({variable('max_bytes')})"
            )
    return [_image_bytes(index, value) for index, value in enumerate(values)]


def _only_column(model_input: Any) -> list[Any]:
    if isinstance(model_input, bytes | bytearray | str):
        return [model_input]
    columns: list[Any]
    if isinstance(model_input, pd.DataFrame):
        if model_input.empty:
            return []
        columns = [list(model_input.iloc[:, index]) for index in range(model_input.shape[1])]
    else:
        columns = list(model_input.values()) if isinstance(model_input, dict) else [model_input]
    if len(columns) != 1:
        raise RefusedRequest(f"the request has {len(columns)} columns: {FORM}")
    column: Any = columns[0]
    if isinstance(column, np.ndarray):
        column = np.atleast_1d(column).tolist()
    if not isinstance(column, list | tuple | pd.Series):
        raise RefusedRequest(f"the request is a {type(column).__name__}, not a list of images: {FORM}")
    rows = [list(value) if isinstance(value, list | tuple) else [value] for value in column]
    for row in rows:
        if len(row) != 1:
            raise RefusedRequest(f"the request has {len(row)} columns: {FORM}")
    return [value for row in rows for value in row]


def _image_bytes(index: int, value: Any) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value)
        except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
            raise RefusedRequest(f"image {index}: not base64") from None
    if isinstance(value, _BYTES):
        return bytes(value)
    raise RefusedRequest(f"image {index}: a {type(value).__name__}, not an image file: {FORM}")
