"""Find trained models by name (a registered version or a finished run), with their weights and recipe."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.config.loading import override_stage
from scalablevit.config.overrides import overridden_tracking_uri, path_in_stage
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import tracking_uri
from scalablevit.config.stored import ModelConfig, stored_config
from scalablevit.config.user_code import import_stored_code
from scalablevit.io import sha256_of
from scalablevit.run_files import CONFIG, RESULT, RUNS, WEIGHTS
from scalablevit.runs.result import load_result
from scalablevit.runs.status import store_of
from scalablevit.tracking.tags import WEIGHTS_SHA256
from scalablevit.tracking.weights import resolve_weights


def find_model(model: str, overrides: Sequence[str], root: Path) -> tuple[str, ModelConfig, str]:
    """Return weights file, `config.json` and the weights' SHA-256 of a registered version or a finished run.

    Args:
        model: `models:/<name>@<alias>`, `models:/<name>/<version>`, or a run's name.
        overrides: of the recipe; `tracking.uri` says where the registry is.
        root: the platform's root.

    Returns:
        The file's path, the config in the current recipe version, and the sum in hexadecimal.

    Raises:
        UserError: there is no such model, or its weights differ from those that training exported.
    """
    if model.startswith("models:/"):
        uri = tracking_uri(overridden_tracking_uri(overrides), root)
        registered = resolve_weights(model, uri, root / "cache" / "models")
        _require_stage(registered.config, model)
        note_older(model, registered.config)
        return str(registered.weights), registered.config, registered.tags[WEIGHTS_SHA256]
    folder = root / RUNS / Path(model).name
    if not (folder / WEIGHTS).is_file() or not _is_meant(model, folder):
        known = sorted(path.parent.parent.name for path in (root / RUNS).glob(f"*/{WEIGHTS}"))
        other = Path(model).absolute().parent
        fix = f"finished: {', '.join(known) or 'none'}; or write models:/<name>@<alias>"
        if other.name == RUNS and (other / folder.name).is_dir() and other.resolve() != folder.parent.resolve():
            fix = f"it is a run of another root: --root {shlex.quote(str(other.parent))}"
        raise UserError(f"no finished run {model!r}", where=str(root / RUNS), fix=fix)
    return find_run_model(folder, model)


def _is_meant(model: str, folder: Path) -> bool:
    """Return whether a name or path means a run of the root, and no other folder whose last part is the same.

    Args:
        model: as typed: a name, a path from here or from the root, or the run's folder in run storage.
        folder: of the root's run of that name.
    """
    path = Path(model)
    if len(path.parts) == 1 or folder.resolve() in (path.resolve(), (folder.parents[1] / path).resolve()):
        return True
    location = store_of(folder).location
    return model.rstrip("/") == location or path.resolve() == Path(location)


def find_run_model(folder: Path, name: str) -> tuple[str, ModelConfig, str]:
    """Return weights file, `config.json` and the weights' SHA-256 of a finished run; see `find_model`.

    Args:
        folder: of the run, on this disk.
        name: of the model in what is printed.

    Raises:
        UserError: the run has not finished, or its weights differ from those that training exported.
    """
    store = store_of(folder)
    finished = load_result(store)
    kept = store.read_json(CONFIG)
    if finished is None or kept is None:
        raise UserError(f"run {folder.name} has not finished", where=store.location, fix="submit its job again")
    if sha256_of(folder / WEIGHTS) != finished.weights_sha256:
        raise UserError(
            f"{WEIGHTS} differs from the SHA-256 in {RESULT}: it was changed or damaged after training",
            where=str(folder),
            fix="restore the file from a copy, or name the registered version (models:/<name>/<version>)",
        )
    config = stored_config(kept, str(folder / CONFIG))
    _require_stage(config, str(folder))
    note_older(name, config)
    return str(folder / WEIGHTS), config, finished.weights_sha256


def _require_stage(config: ModelConfig, where: str) -> None:
    if "stage" not in config:
        raise UserError(f"{CONFIG} has no stage, so it is no model of this platform", where=where,
                        fix="restore the file from a copy, or name another model")  # fmt: skip


def note_older(model: str, config: ModelConfig) -> None:
    """Print a note about a model from before `data.antialias`, whose training images were shrunk in another way."""
    data = config["stage"]["data"]
    if data["source"] == "image_folder" and "antialias" not in data:
        print(f"  note    {model} was trained before data.antialias came, on images shrunk by OpenCV's area filter; "
              "now the filter is the one that data.antialias names, and metrics may differ a little")  # fmt: skip


def trained_recipe(script: str, config: ModelConfig, overrides: Sequence[str], model: str) -> Recipe:
    """Return a recipe of one stage, that which trained a model, with overrides that do not change its network.

    The users' code that it was trained with is imported from this machine; the copy that is stored with it never runs.

    Args:
        script: name of the only stage, also in errors.
        config: the model's `config.json`.
        overrides: as typed.
        model: what errors name for values without a location.

    Raises:
        UserError: an override of the model's section or code, or as `import_stored_code` and `override_stage`.
    """
    for override in overrides:
        if path_in_stage(override)[:1] in (["model"], ["imports"]):
            raise UserError(
                "the weights are of the network that the model's own recipe describes",
                where=f"override {override!r}",
                fix="leave it out; another network has to be trained",
            )
    import_stored_code(config, model)
    stored = {**config["stage"], "model": {**config["stage"]["model"], "init": None}}
    return override_stage(script, stored, overrides, model)
