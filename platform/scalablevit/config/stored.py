"""Stages as they are stored in run folders, model configs and captured steps, whatever recipe version wrote them."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

import yaml

from scalablevit.config.checking import check
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.strict_yaml import YamlDict
from scalablevit.config.upgrade import VERSION, upgrade
from scalablevit.config.user_code import import_user_code, stored_names


class ModelConfig(TypedDict):
    """A model's `config.json`. It may come from somebody else's registry, so no key is guaranteed to be right."""

    format: int
    stage: YamlDict
    """Plain sections of the stage, not yet checked."""
    classes: Sequence[str]
    """Class names, in the order of the network's outputs."""
    metrics: dict[str, float]
    """Metrics of the evaluation at `step`, by reported name."""
    step: int
    """Optimizer step of the checkpoint that the weights are from."""
    user_code: NotRequired[dict[str, str]]
    """`portable_sum` of each package of the stage's `imports`, by name."""


def to_store(stage: Stage) -> PlainValues:
    """Return the plain values of a stage as they are written to files, with the version first."""
    return {"version": VERSION, **stage.model_dump(mode="json")}


def stored_sections(raw: Any, where: str = "") -> YamlDict:
    """Return the plain sections of a stored stage in the current version.

    Keys that did not exist when it was stored get the value that has the same effect.

    Args:
        raw: what `to_store` returned, or what version 1 wrote.
        where: the file, for errors.

    Raises:
        UserError: it is no stage, or of a version that this platform cannot read.
    """
    sections = upgrade(raw, where)
    del sections["version"]
    result: YamlDict = _with_former_defaults(sections)
    return result


def stored_stage(
    raw: Any, where: str = "", *, imports: bool = False, expected: Mapping[str, str] | None = None
) -> Stage:
    """Return a stored stage.

    Args:
        raw: as for `stored_sections`.
        where: as for `stored_sections`.
        imports: import the users' code that it names.
        expected: SHA-256 that each package of that code must have, by name; None: any.

    Raises:
        UserError: as `stored_sections`, its values are refused, or as `import_user_code`.
    """
    sections = stored_sections(raw, where)
    if imports:
        import_user_code(stored_names(sections, where), expected, where, for_reading=expected is None)
    return check(Stage, sections, {}, where)


def stored_recipe(raw: Any, where: str = "") -> Recipe:
    """Return a stored recipe.

    Args:
        raw: its plain values.
        where: the file, for errors.

    Raises:
        UserError: it is no recipe, or of a version that this platform cannot read, or its values are refused.
    """
    recipe = upgrade(raw, where)
    if isinstance(recipe.get("stages"), Mapping):
        recipe["stages"] = {name: _with_former_defaults(stage) for name, stage in recipe["stages"].items()}
    return check(Recipe, recipe, {}, where)


def _with_former_defaults(sections: Any) -> Any:
    """Return the sections of a stored stage with the keys that it lacks and whose default was different then."""
    if not isinstance(sections, Mapping) or not isinstance(sections.get("training"), Mapping):
        return sections  # no stage, which the check reports
    return {**sections, "training": {"ema_warmup": False, "cpu_linear": "torch", **sections["training"]}}


def parse_stored(content: bytes, where: str) -> Any:
    """Return the plain values in a stored YAML file.

    Args:
        content: of the file.
        where: the file, for errors.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date or number that cannot be
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"not readable as YAML: {problem}", where=where, fix="restore the file from a copy") from None


def stored_config(config: Any, where: str = "") -> ModelConfig:
    """Return a model's `config.json` with the sections of its stage, if it has one, in the current version.

    Args:
        config: the content of the file.
        where: the file, for errors.

    Raises:
        UserError: it is no mapping, or as `stored_sections`.
    """
    if not isinstance(config, Mapping):
        raise UserError("holds no model config", where=where, fix="restore the file from a copy")
    stage = {"stage": stored_sections(config["stage"], where)} if "stage" in config else {}
    return cast(ModelConfig, {**config, **stage})
