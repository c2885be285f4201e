"""A registered model or a finished run, evaluated on its validation split or on other data."""

import argparse
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from hashlib import file_digest
from pathlib import Path
from typing import Any

import yaml

from scalablevit.config.errors import UserError
from scalablevit.config.loading import override_stage
from scalablevit.config.overrides import path_in_stage
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.config.stored import stored_config, to_store
from scalablevit.data.sources.files import left_out
from scalablevit.pipeline import cluster
from scalablevit.pipeline.resolve import ResolvedStage, describe, model_cost, resolve_evaluation
from scalablevit.runs.result import CONFIG, RESULT, WEIGHTS, load_result, without_secrets
from scalablevit.runs.status import store_of
from scalablevit.tracking.tags import WEIGHTS_SHA256
from scalablevit.tracking.weights import resolve_weights

EPILOG = """\
MODEL is models:/<name>@<alias>, models:/<name>/<version> or the name of a run under <root>/runs. Its own recipe says
what it is evaluated on; overrides change that: data.root=/other/data (laid out alike; the validation split is enough,
and its classes may stand in any order), cluster.workers=4,
task.test_time_augmentation='{scales: [0.75, 1.0, 1.25], flip: true}', tracking.uri=http://..."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    parser.add_argument("--root", metavar="DIR", help="the platform's root (SCALABLEVIT_ROOT, ~/scalablevit)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, start nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; see `add_arguments`."""
    root = platform_root(options.root, make=False)
    weights, config, sha256 = find_model(options.model, options.overrides, root)
    ungated = {**config, "stage": {**config["stage"], "promotion": {}}}  # an evaluation asks no gate
    recipe = trained_recipe("evaluate", ungated, options.overrides, options.model)
    stage = resolve_evaluation(recipe, root, config["classes"])
    facts = {**describe(stage), "data": _described_data(stage)}
    for name in ("data", "digest", "resources"):
        print(f"  {name:<12}{facts[name]}", flush=True)
    print(f"  {'model':<12}{model_cost(stage.name, stage.stage, stage.classes)}", flush=True)
    if options.dry_run:
        shown = to_store(without_secrets(stage.stage))
        print("\nresolved recipe:\n" + yaml.safe_dump(shown, sort_keys=False) + "\ndry run: nothing was started")
        return 0
    figures = evaluate_weights(stage, weights, sha256, root)
    width = max(map(len, figures))
    print("\n".join(f"{name:<{width}}  {value:.4f}" for name, value in figures.items()))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _described_data(resolved: ResolvedStage) -> str:
    data = resolved.stage.data
    return "; ".join((
        f"{data.source} {data.root}: {resolved.val_samples} validation samples, {len(resolved.classes)} classes, "
        f"{resolved.unreadable} unreadable, {left_out(resolved.ignored)}",
        *resolved.notes,
    ))  # fmt: skip


def find_model(model: str, overrides: Sequence[str], root: Path) -> tuple[str, dict[str, Any], str]:
    """Weights file, `config.json` in the current version, and the weights' SHA-256 of a registered version or a run.

    Raises:
        UserError: there is no such model, or its weights are not those that training left.
    """
    if model.startswith("models:/"):
        uri = next((o.partition("=")[2] for o in overrides if o.startswith("tracking.uri=")), None)
        found = resolve_weights(model, tracking_uri(uri, root), root / "cache" / "models")
        note_older(model, found.config)
        return str(found.weights), found.config, found.tags[WEIGHTS_SHA256]
    folder = root / "runs" / Path(model).name
    if not (folder / WEIGHTS).is_file():
        known = sorted(path.parent.parent.name for path in (root / "runs").glob(f"*/{WEIGHTS}"))
        raise UserError(f"no finished run {model!r}", where=str(root / "runs"),
                        fix=f"finished: {', '.join(known) or 'none'}; or write models:/<name>@<alias>")  # fmt: skip
    return find_run_model(folder, model)


def find_run_model(folder: Path, name: str) -> tuple[str, dict[str, Any], str]:
    """Return the weights file, `config.json` in the current version, and the weights' SHA-256 of a finished run.

    Args:
        folder: of the run, on this disk.
        name: of the model in what is printed.

    Raises:
        UserError: the run has not finished, or its weights are not those that training left.
    """
    store = store_of(folder)
    finished = load_result(store)
    kept = store.read_json(CONFIG)
    if finished is None or kept is None:
        raise UserError(f"run {folder.name} has not finished", where=store.location, fix="submit its job again")
    with (folder / WEIGHTS).open("rb") as file:
        if file_digest(file, "sha256").hexdigest() != finished.weights_sha256:
            raise UserError(
                f"{WEIGHTS} differs from the SHA-256 in {RESULT}: it was changed or damaged after training",
                where=str(folder),
                fix="restore the file from a copy, or name the registered version (models:/<name>/<version>)",
            )
    config = stored_config(kept, str(folder / CONFIG))
    note_older(name, config)
    return str(folder / WEIGHTS), config, finished.weights_sha256


def note_older(model: str, config: dict[str, Any]) -> None:
    """Say it of a model whose `config.json` lacks a key and whose images were prepared as none of its values does."""
    data = config["stage"]["data"]
    if data["source"] == "image_folder" and "antialias" not in data:
        print(f"  note    {model} was trained before data.antialias came, on images shrunk by OpenCV's area filter; "
              "now the filter is the one that data.antialias names, and figures may differ a little")  # fmt: skip


def trained_recipe(script: str, config: Mapping[str, Any], overrides: Sequence[str], model: str) -> Recipe:
    """The stage that a model was trained by, with overrides on top that leave its network alone.

    Args:
        script: name of the only stage, also in errors.
        config: the model's `config.json`.
        overrides: as written.
        model: what stands in errors for values without a place.

    Raises:
        UserError: an override of the model's section, or as `override_stage`.
    """
    for override in overrides:
        if path_in_stage(override)[:1] == ["model"]:
            raise UserError(
                "the weights are of the network that the model's own recipe describes",
                where=f"override {override!r}",
                fix="leave it out; another network has to be trained",
            )
    stored = {**config["stage"], "model": {**config["stage"]["model"], "init": None}}
    return override_stage(script, stored, overrides, model)


def evaluate_weights(stage: ResolvedStage, weights: str, sha256: str, root: Path) -> dict[str, float]:
    """Figures of the weights on a stage's validation split, computed by Ray Train workers."""
    cluster.connect([stage], root)
    from scalablevit.training.data_listing import store_listings
    from scalablevit.training.launch import launch
    from scalablevit.training.worker import Assignment

    folder = root / "runs" / f"evaluate-{stage.hash}-{uuid.uuid4().hex[:8]}"
    assignment = Assignment(
        stage=without_secrets(stage.stage).model_dump_json(),
        run_folder="",
        root=str(root),
        init_weights=weights,
        init_sha256=sha256,
        evaluate_only=True,
        data_listing=str(folder),
    )
    try:
        store_listings(str(folder), stage.sources)
        result = launch(stage.stage, assignment.as_dict(), str(folder), [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # Ray's own files and the listing, of no use afterwards
    return dict(result["metrics"])
