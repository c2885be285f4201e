"""Cache of what a plan prints about a model: counting it means loading torch, which takes ten seconds."""

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from scalablevit.config.user_code import package_sums
from scalablevit.io import write_file
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.runs.result import without_secrets
from scalablevit.tracking.environment import code_digest

FOLDER = Path("cache", "model_facts")
"""Below the platform's root: a file for each stage, named by all that the facts depend on."""
PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "torchvision", "timm", "onedl-mmsegmentation")
"""Libraries on which a model's parameters and cost depend."""

Facts = dict[str, str]
"""Facts of a plan by name."""


def cached_facts(resolved: ResolvedStage, root: Path, count: Callable[[], Facts]) -> Facts:
    """Return the facts about a stage's model, counted only where stage, classes, code and libraries are new.

    Args:
        resolved: the stage.
        root: the platform's root.
        count: returns the facts; if it raises, nothing is cached.
    """
    file = root / FOLDER / f"{_key(resolved)}.json"
    with suppress(OSError, ValueError):
        known = json.loads(file.read_bytes())
        if isinstance(known, dict) and all(isinstance(fact, str) for fact in known.values()):
            return known
    facts = count()
    with suppress(OSError):  # a full or read-only disk: they are counted again the next time
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, json.dumps(facts).encode(), durable=False)
    return facts


def _key(resolved: ResolvedStage) -> str:
    parts = [
        without_secrets(resolved.stage).model_dump(mode="json"),
        list(resolved.classes),
        code_digest(PACKAGE),
        package_sums(resolved.stage.imports),
        [_version(name) for name in LIBRARIES],
        sys.version,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _version(name: str) -> str:
    """Return an installed version; empty where the distribution is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
