"""Cache of what a plan knows about a model: working it out means loading torch, which takes ten seconds."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from scalablevit.config.recipe import Stage
from scalablevit.config.user_code import package_sums
from scalablevit.io import write_file
from scalablevit.runs.result import without_secrets
from scalablevit.tracking.environment import code_digest, installed_version

FOLDER = Path("cache", "model_facts")
"""Below the platform's root: a file for each stage, named by all that the facts depend on."""
PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "onedl-mmsegmentation")
"""Libraries on which a model's parameters and cost depend."""

Facts = dict[str, str]
"""Facts of a plan by name."""


def cached_facts(
    stage: Stage, classes: Sequence[str], root: Path, count: Callable[[], Facts], *further: str | bool
) -> Facts:
    """Return the facts about a stage's model, counted only where stage, classes, code and libraries are new.

    Args:
        stage: of the model.
        classes: of its data.
        root: the platform's root.
        count: returns the facts; if it raises, nothing is cached.
        further: what else the facts depend on; other facts have others.
    """
    file = root / FOLDER / f"{_key(stage, classes, further)}.json"
    with suppress(OSError, ValueError):
        known = json.loads(file.read_bytes())
        if isinstance(known, dict) and all(isinstance(fact, str) for fact in known.values()):
            return known
    facts = count()
    with suppress(OSError):  # a full or read-only disk: they are counted again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(facts).encode(), durable=False)
    return facts


def _key(stage: Stage, classes: Sequence[str], further: Sequence[str | bool]) -> str:
    parts = [
        *further,
        without_secrets(stage).model_dump(mode="json"),
        list(classes),
        code_digest(PACKAGE),
        package_sums(stage.imports),
        [_version(name) for name in LIBRARIES],
        sys.version,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str:
    """Return an installed version; empty where the distribution is not installed."""
    try:
        return installed_version(name)
    except metadata.PackageNotFoundError:
        return ""
