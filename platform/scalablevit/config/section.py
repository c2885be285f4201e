"""The base class of a recipe's sections, and the types that they share."""

from typing import Annotated, Any, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1, le=10**12)]
Triple = tuple[float, float, float]
PlainValues: TypeAlias = dict[str, Any]
"""Values of a section, stage or recipe that a schema has accepted, as JSON has them: what `model_dump(mode="json")`
returns."""
OptionValue = bool | int | float | str | list[int | None] | list[str]

NOT_HASHED = {"hashed": False}
"""Marks a field that is no part of a run's identity (`run_hash.hashed_part`)."""


class Section(BaseModel):
    """A part of the recipe: unknown keys, wrong types, infinities and later changes are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class SectionError(ValueError):
    """What a section's validator raises where it knows what to do.

    Args:
        what: what is wrong.
        fix: what to do about it.
        *key: path in the section of the key that is wrong; empty: it is the section.
    """

    def __init__(self, what: str, fix: str, *key: str) -> None:
        super().__init__(what)
        self.fix, self.key = fix, key


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return all section classes named in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def kind_of(model: type[BaseModel]) -> str | None:
    """Return the value of `source` or `kind` by which a section is chosen; None for a section that has neither."""
    for key in ("source", "kind"):
        if key in model.model_fields:
            return str(get_args(model.model_fields[key].annotation)[0])
    return None
