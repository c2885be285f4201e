"""Population-based training: a trial continues from another trial's weights with other values.

Whenever its values or its weights change, a trial continues in a new folder, a segment, so that no checkpoint is ever
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
"""File of a Tune checkpoint that names one of ours, by folder and step."""


def write_recipe(folder: str, stage: Stage) -> None:
    """Write the recipe of a stage into the folder of its checkpoints."""
    put_text(folder, RECIPE, recipe_text(stage))


def recipe_text(stage: Stage) -> str:
    """Return a stage as YAML."""
    return yaml.safe_dump(to_store(stage), sort_keys=False, allow_unicode=True)


@contextmanager
def pointer_checkpoint(folder: str, step: int) -> Iterator[tune.Checkpoint]:
    """Yield a Tune checkpoint for `tune.report` that only names one of ours.

    Args:
        folder: the run's folder of our checkpoint.
        step: optimizer steps done at it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / POINTER).write_text(json.dumps({"folder": folder, "step": step}))
        yield tune.Checkpoint(temporary)


def segment_folder(trial_folder: str, stage: Stage) -> str:
    """Return the folder in which a trial continues: its latest segment, or a new one from the checkpoint Tune passes.

    Args:
        trial_folder: the trial's folder.
        stage: the stage with the trial's present values.

    Raises:
        FileNotFoundError: that checkpoint does not exist any more.
    """
    index = max(0, len(segment_folders(trial_folder)) - 1)
    latest = _segment(trial_folder, index)
    passed = tune.get_checkpoint()
    donor = None
    if passed is not None:
        with passed.as_directory() as folder:
            donor = json.loads((Path(folder) / POINTER).read_text())
    same_recipe = _recipe_of(latest) in (None, recipe_text(stage))
    if same_recipe and (donor is None or donor["folder"] == latest):
        return latest
    new = _segment(trial_folder, index + 1)
    source = donor or {"folder": latest, "step": None}
    own = source["folder"].startswith(f"{trial_folder}/")
    _copy(CheckpointStore(source["folder"]), source["step"], CheckpointStore(new), own=own)
    if index:
        # other trials may still copy from the latest segment, but not from those before it
        CheckpointStore(_segment(trial_folder, index - 1)).remove_all()
    return new


def segment_folders(trial_folder: str) -> list[str]:
    """Return the folders of the segments of a trial, in order; empty outside population-based training."""
    folders: list[str] = []
    while _recipe_of(_segment(trial_folder, len(folders))) is not None:
        folders.append(_segment(trial_folder, len(folders)))
    return folders


def _segment(trial_folder: str, index: int) -> str:
    return f"{trial_folder}/segment-{index:03d}"


def _recipe_of(folder: str) -> str | None:
    filesystem, path = open_filesystem(folder)
    content = read(filesystem, f"{path}/{RECIPE}")
    return None if content is None else content.decode()


def _copy(source: CheckpointStore, step: int | None, target: CheckpointStore, *, own: bool) -> None:
    """Copy the checkpoint of a step (None: the newest that is whole), after checking its files.

    Args:
        source: the checkpoints to copy from.
        step: optimizer steps done.
        target: the new segment's checkpoints.
        own: whether `source` belongs to the same trial. Another trial's records and evaluations are left out: this
            trial would report them as its own.
    """
    entries = [entry for entry in source.entries() if step in (None, entry.step)]
    if not entries:
        raise FileNotFoundError(f"{source.folder} holds no checkpoint of step {step} any more")
    target.remove_all()  # left by a copy that was killed
    newest = source.newest() if step is None else None
    name, snapshot = newest or (entries[-1].name, source.read(entries[-1].name))
    value = next(entry.value for entry in entries if entry.name == name)
    target.write(snapshot if own else snapshot.without_past(), value if own else None)
