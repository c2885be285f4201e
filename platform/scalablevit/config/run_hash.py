"""What makes a run the same run."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from scalablevit.config import upgrade
from scalablevit.config.recipe import Stage
from scalablevit.config.section import PlainValues
from scalablevit.config.user_code import package_sums


def hashed_part(stage: Stage) -> PlainValues:
    """What makes a stage's run the same run.

    All but cluster, tracking, promotion, logging, retention, the data's place and what its check refuses. Keys that are
    younger than version 2 are left out where they change nothing, so that earlier runs keep their names.
    """
    part = stage.model_dump(mode="json", exclude={"cluster", "tracking", "promotion"})
    part["data"].pop("root")
    for name in ("data", "training"):
        for key, field in type(getattr(stage, name)).model_fields.items():
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hashed") is False:
                part[name].pop(key)
    if stage.training.ema_decay is None or not stage.training.ema_warmup:
        part["training"].pop("ema_warmup")
    if not stage.optimizer.schedule.warmup_prefix:
        part["optimizer"]["schedule"].pop("warmup_prefix")
    return part


def stage_hash(stage: Stage, data_digest: str, parents: Sequence[str] = ()) -> str:
    """Twelve hexadecimal digits that name a stage's run.

    Args:
        stage: the resolved stage.
        data_digest: digest of its data.
        parents: hashes of the stages that it starts from.

    Raises:
        UserError: a package that the stage imports is not here.
    """
    return short_digest([upgrade.VERSION, hashed_part(stage), data_digest, list(parents), *code_part(stage)])


def code_part(stage: Stage) -> list[dict[str, str]]:
    """Return what users' own code adds to a hash: nothing where there is none, so that earlier runs keep their names.

    Raises:
        UserError: a package that the stage imports is not here.
    """
    return [package_sums(stage.imports)] if stage.imports else []


def short_digest(value: Any) -> str:
    """Twelve hexadecimal digits of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
