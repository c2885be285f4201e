"""What `kubectl kustomize` makes of a folder, for the features that infra/kuberay uses; any other one is refused."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]
FEATURES = {"apiVersion", "kind", "resources", "components", "patches", "replacements"}


def documents(file: Path) -> list[Document]:
    return [_plain(each) for each in yaml.safe_load_all(file.read_text(encoding="utf-8")) if each]


def _plain(node: Any) -> Any:
    """A loaded text, in which what an anchor names is a copy in each place."""
    return json.loads(json.dumps(node))


def render(folder: Path) -> list[Document]:
    """Return the objects of a folder."""
    return _complete([], folder)


def _complete(objects: list[Document], folder: Path) -> list[Document]:
    """Add a folder's resources to the objects, and do what it says to all of them; as for a component."""
    (settings,) = documents(folder / "kustomization.yaml")
    assert settings.keys() <= FEATURES, settings.keys() - FEATURES
    for name in settings.get("resources", []):
        place = folder / name
        objects = objects + (render(place) if place.is_dir() else documents(place))
    for name in settings.get("components", []):
        objects = _complete(objects, folder / name)
    for patch in settings.get("patches", []):
        text = (folder / patch["path"]).read_text(encoding="utf-8") if "path" in patch else patch["patch"]
        for each in _selected(objects, patch["target"]):
            _patch(each, _plain(yaml.safe_load(text)))
    for replacement in settings.get("replacements", []):
        (source,) = _selected(objects, {"kind": replacement["source"]["kind"]})
        value = _at(source, replacement["source"]["fieldPath"].split("."))
        for target in replacement["targets"]:
            for each in _selected(objects, target["select"]):
                for path in target["fieldPaths"]:
                    *parents, last = path.split(".")
                    _at(each, parents)[last] = value
    return objects


def _selected(objects: list[Document], target: dict[str, str]) -> list[Document]:
    assert target.keys() <= {"kind", "name"}
    of_kind = [each for each in objects if each["kind"] == target["kind"]]
    return [each for each in of_kind if each["metadata"]["name"] == target.get("name", each["metadata"]["name"])]


def _at(node: Any, path: list[str]) -> Any:
    for key in path:
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


def _patch(target: Document, patch: Any) -> None:
    """Apply a patch: a list is one of RFC 6902, anything else is merged."""
    if not isinstance(patch, list):
        name = target["metadata"]["name"]  # what is patched keeps it
        _merge(target, patch)
        target["metadata"]["name"] = name
        return
    for step in patch:
        *parents, last = step["path"].removeprefix("/").split("/")
        node = _at(target, parents)
        match step["op"]:
            case "replace":
                key: Any = int(last) if isinstance(node, list) else last
                node[key]  # it is there
                node[key] = step["value"]
            case "add" | "copy" as operation:
                value = step["value"] if operation == "add" else _at(target, step["from"].removeprefix("/").split("/"))
                value = copy.deepcopy(value)
                if isinstance(node, list):
                    node.insert(len(node) if last == "-" else int(last), value)
                else:
                    node[last] = value
            case other:
                raise AssertionError(other)


def _merge(target: Document, patch: Document) -> None:
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            assert not isinstance(target.get(key), list), f"{key}: kustomize merges some lists"
            target[key] = copy.deepcopy(value)


def strings(node: Any) -> Iterator[str]:
    """All texts in an object, keys too."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node
