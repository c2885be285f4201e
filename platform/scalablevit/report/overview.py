"""The first screen of a report: when, how long, on which machine, how it ended, and what to do next."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scalablevit.config.commands import PROGRAM
from scalablevit.config.recipe import Cluster
from scalablevit.run_files import IDENTITY, RUNS
from scalablevit.runs.console import format_duration
from scalablevit.runs.result import StageResult, useless_note
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Status
from scalablevit.tracking.connection import tracking_override

DATE_FORMAT = "%Y-%m-%d %H:%M UTC"
"""Format of dates for `strftime`."""


@dataclass(frozen=True)
class WorkTime:
    """When a run was at work."""

    started: float
    """First start of the run, seconds since the epoch."""
    seconds: float
    """Time at work, over all attempts where that is known."""


@dataclass(frozen=True)
class NextStep:
    """Something to do next."""

    words: str
    command: str = ""
    """Shell command that does it; empty: none."""


@dataclass(frozen=True)
class Overview:
    """The content of the first screen."""

    state: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """When, how long and on what machines, by name."""
    next_steps: tuple[NextStep, ...] = ()


def work_time(store: RunStore, status: Status | None, result: StageResult | None = None) -> WorkTime | None:
    """Return when a run was at work; None where nothing says so.

    Args:
        store: the run's folder.
        status: the run's status, if it has one.
        result: the result of a finished stage; None for other runs.
    """
    created = (store.read_json(IDENTITY) or {}).get("created")
    if result is not None:
        seconds = sum(result.profile.values()) or 60 * result.minutes
    elif status is not None:
        seconds = (status.ended or status.updated) - status.started
    else:
        return None
    started = created if isinstance(created, int | float) else status.started if status is not None else None
    return None if started is None else WorkTime(float(started), max(0.0, seconds))


def machine(cluster: Cluster, host: str, device: str = "") -> str:
    """Return what a stage ran on, in words.

    Args:
        cluster: the recipe's section.
        host: name of the driver's machine; empty: unknown.
        device: name of the first worker's GPU or CPU; empty: unknown.
    """
    per_worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    resources = ", ".join(f"{count:g} {name}" for name, count in per_worker.items() if count)
    workers = f"{cluster.workers} worker{'s' * (cluster.workers > 1)} x ({resources})"
    return ", ".join(filter(None, [host, workers, device]))


def overview(
    state: str, times: Sequence[WorkTime | None], machines: Sequence[str], next_steps: tuple[NextStep, ...]
) -> Overview:
    """Return the first screen of some stages or of a search.

    Args:
        state: how all of them together ended.
        times: when each was at work; None: unknown.
        machines: what each ran on, in words; empty ones are skipped.
        next_steps: see `steps_of_stages`.
    """
    known = [time for time in times if time is not None]
    facts = {}
    if known:
        facts["started"] = datetime.fromtimestamp(min(time.started for time in known), UTC).strftime(DATE_FORMAT)
        stages = f" in {len(known)} stages" if len(known) > 1 else ""
        facts["took"] = format_duration(sum(time.seconds for time in known)) + stages
    facts["machine"] = "; ".join(dict.fromkeys(filter(None, machines)))
    return Overview(state, facts, next_steps)


def steps_of_stages(
    folder: Path, finished: Sequence[tuple[Mapping[str, Any], str | None]], tracking: str, *, unfinished: bool
) -> tuple[NextStep, ...]:
    """Return what to do after a job or a stage.

    Args:
        folder: folder of the job or stage, below `<root>/runs`; for a folder elsewhere no commands are named.
        finished: `result.json` of the finished stages, in order, and what each is registered as (empty: it is not;
            None: unknown).
        tracking: MLflow's address without credentials; empty: unknown.
        unfinished: whether there are stages without a result.
    """
    steps = []
    if unfinished:
        steps.append(NextStep("Go on: submit the same command again. Finished stages are skipped, the others resume."))
    if finished and folder.parent.name == RUNS:
        root_option = f"--root {shlex.quote(str(folder.parent.parent))}"
        result, registered = finished[-1]
        run = shlex.quote(result["run_name"])
        predict = f"{PROGRAM} predict {run} IMAGES --out predictions {root_option}"
        steps.append(NextStep(f"Predict your own images with the model of stage {result['name']}:", predict))
        if useless := useless_note(result["metric"], result["value"], len(result["classes"])):
            steps.append(NextStep(f"Train again before you use it: {useless}."))
        elif registered:
            where = tracking_override(tracking, folder.parent.parent) if tracking else ""
            promote = f"{PROGRAM} promote {shlex.quote(result['registered_as'])} {root_option}{where}"
            steps.append(
                NextStep("Make it the champion if it passes the gate, against the champion so far if any:", promote)
            )
        elif registered is not None:
            steps.append(NextStep("Send to MLflow what it does not have yet:", f"{PROGRAM} sync {root_option}"))
    return tuple(steps)
