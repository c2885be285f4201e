"""The types of an answer's values, in the words of MLflow's signatures."""

from typing import NotRequired, TypedDict


class ColumnType(TypedDict):
    """The type of a value."""

    type: str
    """`string`, `double`, `long`, `binary`, or `array`, `map` and `object`, whose parts are below."""
    items: NotRequired["ColumnType"]
    """Of each entry of an array."""
    values: NotRequired["ColumnType"]
    """Of each value of a map, whose keys are strings."""
    properties: NotRequired[dict[str, "ColumnType"]]
    """Of each field of an object."""


def array_of(items: ColumnType) -> ColumnType:
    """Return the type of a list."""
    return {"type": "array", "items": items}


STRING: ColumnType = {"type": "string"}
DOUBLE: ColumnType = {"type": "double"}
