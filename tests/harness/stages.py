"""Stages of the three tasks at the smallest size: data and task of the tiny recipe, on the built-in shapes."""

import json
from functools import cache
from typing import Any

import yaml

from harness.heads import TINY
from scalablevit.config.recipe import Stage

Sections = dict[str, dict[str, Any]]
TASKS = {"classification": "pretrain", "segmentation": "segment", "detection": "detect"}
"""Kind of task to the stage's name in the tiny recipe."""


@cache
def _stages() -> str:
    return json.dumps(yaml.safe_load(TINY.read_text())["stages"])


def data_and_task(kind: str, root: str) -> Sections:
    """Sections `data`, reading the shapes below `root`, and `task` of a kind of task."""
    stage = json.loads(_stages())[TASKS[kind]]
    return {"data": {"root": root, **stage["data"]}, "task": stage["task"]}


def merged(base: Sections, sections: Sections) -> Sections:
    """Entries of `sections` on top of those of `base`, section by section."""
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in dict.fromkeys([*base, *sections])}


def checked(sections: Sections) -> Stage:
    """The sections as a stage."""
    return Stage.model_validate_json(json.dumps(sections))
