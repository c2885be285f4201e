"""Transforms of training images that users' own code adds, by name."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from pydantic_core import PydanticCustomError

from scalablevit.config.errors import UserError
from scalablevit.config.packages import refuse_unimportable

UNDEFINED = "undefined_name"
"""pydantic's error type for a name that users' code may define once it is imported."""
TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {}
"""Every registered transform by name; typed `Any`, since this layer does not import NumPy."""


def register_transform(name: str, transform: Callable[[Any, Any], Any]) -> None:
    """Add a transform of training images, which recipes then may list under `data.transforms`.

    Call it when your package is imported, and name the package under `imports` in the recipe. Registering the same
    function again is harmless.

    Args:
        name: lower-case letters, digits and _, beginning with a letter.
        transform: takes an image, uint8 (H, W, 3) RGB, which it may change, and a `numpy.random.Generator` that depends
            on the sample's position in the training stream alone; returns an image of the same shape. Labels are not
            changed.

    Raises:
        UserError: the name is none or taken, or other processes could not import the function.
    """
    where = f"register_transform {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError("is not a valid name", where=where, fix="write lowercase letters, digits and _")
    refuse_unimportable(transform, where)
    other = TRANSFORMS.get(name, transform)
    if (other.__module__, other.__qualname__) != (transform.__module__, transform.__qualname__):
        raise UserError(f"is taken by {other.__module__}.{other.__qualname__}", where=where, fix="choose another name")
    TRANSFORMS[name] = transform


def refuse_unknown(names: Sequence[str]) -> None:
    """Refuse names of transforms that are not registered.

    Raises:
        PydanticCustomError: of the type `UNDEFINED`.
    """
    for name in names:
        if name not in TRANSFORMS:
            known = f"; there are {', '.join(TRANSFORMS)}" if TRANSFORMS else ""
            text = f"no transform {name[:100]!r} is registered{known}"
            raise PydanticCustomError(UNDEFINED, "{text}", {"text": text})
