"""The data of a run as its driver listed it: stored in the run's folder, and opened by all that read its samples."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalablevit.config.data import Data, SplitName
from scalablevit.config.errors import UserError
from scalablevit.config.section import PlainValues
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.node_cache import open_on_node
from scalablevit.data.sources.opening import source_of
from scalablevit.run_files import DATA, LISTINGS
from scalablevit.training import storage

FIELDS = ("source", "root", "train", "val", "classes", "instance_masks")
"""Fields of a recipe's data section that a listing depends on."""


def store_listings(location: str, sources: Mapping[SplitName, Source]) -> None:
    """Write the listings of all given splits below a folder.

    Args:
        location: the run's folder in run storage, path or address.
        sources: the source of each split.
    """
    filesystem, folder = storage.open_filesystem(location)
    filesystem.create_dir(f"{folder}/{DATA}", recursive=True)
    facts: dict[str, Any] = {"of": _depends_on(next(iter(sources.values())).data)}
    for split, source in sources.items():
        content = source.listing.pack()
        facts[split] = hashlib.sha256(content).hexdigest()
        storage.put(filesystem, f"{folder}/{DATA}/{split}.listing", content)
    storage.put(filesystem, f"{folder}/{LISTINGS}", json.dumps(facts, indent=1).encode())


def open_stored(data: Data, split: SplitName, root: Path, location: str) -> Source:
    """Return a split's source from the listing that `store_listings` wrote, without listing the data's folders.

    Args:
        data: the recipe's data section.
        split: which of the two splits.
        root: the platform's root folder; the data's own root is relative to it.
        location: the run's folder in run storage, path or address.

    Raises:
        UserError: the listing is missing, damaged, or that of other data.
    """
    filesystem, folder = storage.open_filesystem(location)
    file = f"{folder}/{DATA}/{split}.listing"
    try:
        facts = json.loads(storage.read(filesystem, f"{folder}/{LISTINGS}") or b"")
        if facts["of"] != _depends_on(data):
            raise ValueError(f"it is of {facts['of']}")
        if not re.fullmatch("[0-9a-f]{64}", facts[split]):
            raise ValueError(f"{LISTINGS} has no SHA-256 for {split}")
        return source_of(data, split, root, open_on_node(facts[split], lambda: storage.read(filesystem, file) or b""))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the listing of the data cannot be used: {error}",
            where=f"{location}/{DATA}",
            fix="submit again: it is made again",
        ) from error


def _depends_on(data: Data) -> PlainValues:
    plain = data.model_dump(mode="json")
    return {name: plain[name] for name in FIELDS if name in plain}
