"""The trials of a search, as stored in their folders: values, curve, how each ended, and which was best."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from scalablevit.run_files import RESULT, TRIAL_LIST, TRIALS
from scalablevit.training.checkpoint import CheckpointStore
from scalablevit.training.storage import open_filesystem, put_text, read
from scalablevit.tuning.population import segment_folders
from scalablevit.tuning.sampling import Values

TrialStatus = Literal["waiting", "running", "unfinished", "finished", "stopped", "failed"]


def trial_folder(search_folder: str, number: int) -> str:
    """Return the folder of a trial's recipe, checkpoints and result."""
    return f"{search_folder}/{TRIALS}/{number:04d}"


@dataclass
class Trial:
    """One trial."""

    number: int
    """Number of the trial in the search, from 0."""
    values: Values
    status: TrialStatus = "waiting"
    """unfinished: interrupted, continues when the search goes on; stopped: by the scheduler."""
    reason: str = ""
    """Why the trial was stopped or failed."""
    curve: dict[int, float] = field(default_factory=dict)
    """The metric by step, as evaluated."""
    to_retry: bool = False
    """It failed for a reason outside its values: this is not stored, and it continues when the search goes on."""

    def best(self, mode: str) -> tuple[int, float] | None:
        """Return step and metric of the best evaluation, the earliest of equal ones; None without any.

        Args:
            mode: "min" or "max": which values of the metric are better.
        """
        sign = -1 if mode == "min" else 1
        points = [(step, value) for step, value in sorted(self.curve.items()) if not math.isnan(value)]
        return max(points, key=lambda point: sign * point[1], default=None)

    def ended(self) -> bool:
        """Return whether nothing is left to train."""
        return self.status in ("finished", "stopped", "failed")


def load_trials(search_folder: str) -> list[Trial]:
    """Return the trials that were drawn or proposed so far, with the results of those that have ended."""
    filesystem, folder = open_filesystem(search_folder)
    content = read(filesystem, f"{folder}/{TRIAL_LIST}")
    trials = [Trial(number, values) for number, values in enumerate(json.loads(content) if content else [])]
    for trial in trials:
        read_result(search_folder, trial)
    return trials


def save_list(search_folder: str, trials: Sequence[Trial]) -> None:
    """Write the values of all trials; to be called before the first, or the newest, of them starts."""
    put_text(search_folder, TRIAL_LIST, json.dumps([trial.values for trial in trials], indent=1))


def read_result(search_folder: str, trial: Trial) -> bool:
    """Read into `trial` how it ended, if its folder says so, and return whether it has ended."""
    filesystem, folder = open_filesystem(trial_folder(search_folder, trial.number))
    content = read(filesystem, f"{folder}/{RESULT}")
    if content is None:
        return False
    result = json.loads(content)
    trial.status, trial.reason = result["status"], result["reason"]
    trial.curve = {int(step): float(value) for step, value in result["curve"]}
    return True


def write_result(search_folder: str, trial: Trial) -> None:
    """Write how a trial ended; from now on a search replays it from this file."""
    result = {"status": trial.status, "reason": trial.reason, "curve": sorted(trial.curve.items())}
    put_text(trial_folder(search_folder, trial.number), RESULT, json.dumps(result))


def rank_trials(trials: Iterable[Trial], mode: str) -> list[Trial]:
    """Return the trials with an evaluation, best first, of equal ones the lower number; without failed ones."""
    sign = -1 if mode == "min" else 1
    valued = [(trial, best) for trial in trials if trial.status != "failed" and (best := trial.best(mode)) is not None]
    return [trial for trial, best in sorted(valued, key=lambda pair: (-sign * pair[1][1], pair[0].number))]


def drop_checkpoints(search_folder: str, trials: Sequence[Trial], mode: str, keep_best: int, dropped: set[int]) -> None:
    """Delete the checkpoints of ended trials that are not among the `keep_best` best ones, and not to be retried.

    Args:
        search_folder: the search's folder in run storage, path or address.
        trials: all trials.
        mode: "min" or "max": which values of the metric are better.
        keep_best: how many of the best trials keep theirs.
        dropped: numbers of the trials whose checkpoints are deleted already, so that a search of thousands of trials
            looks into each folder once; changed in place.
    """
    kept = {trial.number for trial in rank_trials(trials, mode)[:keep_best]}
    for trial in trials:
        if trial.ended() and not trial.to_retry and trial.number not in kept and trial.number not in dropped:
            folder = trial_folder(search_folder, trial.number)
            for run_folder in (folder, *segment_folders(folder)):
                CheckpointStore(run_folder).remove_all()
            dropped.add(trial.number)


def table(trials: Sequence[Trial], mode: str, steps_per_epoch: dict[int, float]) -> str:
    """Return the trials as CSV: equal for equal searches, so without times.

    Args:
        trials: all trials of a search.
        mode: "min" or "max": which values of the metric are better.
        steps_per_epoch: by the trial's number.
    """
    out = io.StringIO()
    paths = list(trials[0].values) if trials else []
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "status", "best", "at_step", "epochs_trained", *paths, "reason"])
    for trial in trials:
        step, value = trial.best(mode) or ("", "")
        epochs = max(trial.curve, default=0) / steps_per_epoch[trial.number]
        values = [json.dumps(value) if isinstance(value, list) else value for value in trial.values.values()]
        writer.writerow([trial.number, trial.status, value, step, round(epochs, 4), *values, trial.reason])
    return out.getvalue()
