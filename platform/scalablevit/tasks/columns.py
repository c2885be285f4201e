"""Types of a served prediction's columns, in the terms of MLflow's model signatures."""

from typing import NotRequired, TypedDict


class ColumnType(TypedDict):
    """The type of a value."""

    type: str
    """`string`, `double`, `long`, `binary`, `array` (see `items`), `map` (`values`) or `object` (`properties`)."""
    items: NotRequired["ColumnType"]
    """Type of each entry of an array."""
    values: NotRequired["ColumnType"]
    """Type of each value of a map, whose keys are strings."""
    properties: NotRequired[dict[str, "ColumnType"]]
    """Type of each field of an object."""


def array_of(items: ColumnType) -> ColumnType:
    """Return the type of an array of `items`."""
    return {"type": "array", "items": items}


STRING: ColumnType = {"type": "string"}
DOUBLE: ColumnType = {"type": "double"}
