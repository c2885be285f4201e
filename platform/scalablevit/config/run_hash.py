"""The hash that names a run: stages with equal hashes are the same run, which is then resumed or skipped."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from scalablevit.config import upgrade
from scalablevit.config.recipe import Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.user_code import package_sums


def hashed_part(stage: Stage) -> PlainValues:
    """Return the plain values of a stage that are part of its run's identity.

    Not part of it are cluster, tracking and promotion, fields marked `NOT_HASHED`, and where the data is (`data.root`).
    Keys that are younger than version 2 are left out where they change nothing, so that earlier runs keep their names.
    """
    part = stage.model_dump(mode="json", exclude={"cluster", "tracking", "promotion"})
    part["data"].pop("root")
    for name in ("data", "training"):
        for key, field in type(getattr(stage, name)).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hashed") is False:
                part[name].pop(key)
    if stage.training.ema_decay is None or not stage.training.ema_warmup:
        part["training"].pop("ema_warmup")
    if not stage.training.image_size_schedule:
        part["training"].pop("image_size_schedule")
    if not stage.optimizer.schedule.warmup_prefix:
        part["optimizer"]["schedule"].pop("warmup_prefix")
    return part


def stage_hash(stage: Stage, data_digest: str, parents: Sequence[str] = ()) -> str:
    """Return the hash that names a stage's run: twelve hexadecimal digits.

    Args:
        stage: the resolved stage.
        data_digest: digest of its data.
        parents: hashes of the stages that it starts from, and the SHA-256 of weights from outside the recipe.

    Raises:
        UserError: a package that the stage imports is not here.
    """
    return short_digest([upgrade.VERSION, hashed_part(stage), data_digest, list(parents), *code_part(stage)])


def code_part(stage: Stage) -> list[dict[str, str]]:
    """Return the users' code as a part of a hash: empty where there is none, so that earlier runs keep their names.

    Raises:
        UserError: a package that the stage imports is not here.
    """
    return [package_sums(stage.imports)] if stage.imports else []


def short_digest(value: Any) -> str:
    """Return the first twelve hexadecimal digits of the SHA-256 of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
