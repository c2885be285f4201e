"""Population-based training: a trial that goes on from another's weights with other values.

Whenever its values or its weights change, a trial goes on in a new folder, a segment, so that no checkpoint is ever
next to a recipe that it was not trained with. Tune passes pointers to checkpoints between trials, not weights.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from ray import tune

from scalablevit.config.recipe import Stage
from scalablevit.config.stored import to_store
from scalablevit.run_files import RECIPE
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.storage import open_filesystem, put_text, read

POINTER = "pointer.json"


def write_recipe(folder: str, stage: Stage) -> None:
    """Keep what is trained in a folder next to its checkpoints."""
    put_text(folder, RECIPE, recipe_text(stage))


def recipe_text(stage: Stage) -> str:
    """A stage as YAML."""
    return yaml.safe_dump(to_store(stage), sort_keys=False, allow_unicode=True)


@contextmanager
def pointer_checkpoint(folder: str, step: int) -> Iterator[tune.Checkpoint]:
    """For `tune.report`: a checkpoint that names ours."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / POINTER).write_text(json.dumps({"folder": folder, "step": step}))
        yield tune.Checkpoint(temporary)


def segment_folder(trial_folder: str, stage: Stage) -> str:
    """Where a trial goes on: its latest segment, or a new one that starts from the checkpoint Tune hands on.

    Raises:
        FileNotFoundError: that checkpoint is not there any more.
    """
    number = max(0, len(segment_folders(trial_folder)) - 1)
    latest = _numbered(trial_folder, number)
    handed = tune.get_checkpoint()
    donor = None
    if handed is not None:
        with handed.as_directory() as folder:
            donor = json.loads((Path(folder) / POINTER).read_text())
    same = _recipe_of(latest) in (None, recipe_text(stage))
    if same and (donor is None or donor["folder"] == latest):
        return latest
    new = _numbered(trial_folder, number + 1)
    source = donor or {"folder": latest, "step": None}
    _copy(CheckpointStore(source["folder"]), source["step"], CheckpointStore(new))
    if number:
        # others may still copy from the latest segment, not from those before it
        CheckpointStore(_numbered(trial_folder, number - 1)).remove_all()
    return new


def segment_folders(trial_folder: str) -> list[str]:
    """The segments that a trial has trained, in order; none outside population-based training."""
    found: list[str] = []
    while _recipe_of(_numbered(trial_folder, len(found))) is not None:
        found.append(_numbered(trial_folder, len(found)))
    return found


def _numbered(trial_folder: str, number: int) -> str:
    return f"{trial_folder}/segment-{number:03d}"


def _recipe_of(folder: str) -> str | None:
    filesystem, path = open_filesystem(folder)
    content = read(filesystem, f"{path}/{RECIPE}")
    return None if content is None else content.decode()


def _copy(source: CheckpointStore, step: int | None, target: CheckpointStore) -> None:
    """Copy the checkpoint of a step (None: the newest), verified on the way."""
    entries = [entry for entry in source.entries() if step in (None, entry.step)]
    if not entries:
        raise FileNotFoundError(f"{source.folder} holds no checkpoint of step {step} any more")
    target.remove_all()  # of a copy that was killed
    target.write(source.read(entries[-1].name), entries[-1].value)
