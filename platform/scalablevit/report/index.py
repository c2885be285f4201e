"""A page over all runs of a root, with links to their reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from scalablevit.config.commands import command_line
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.report.overview import DATE_FORMAT
from scalablevit.report.page import environment
from scalablevit.run_files import JOB, RECIPE, REPORT, RUNS
from scalablevit.runs.console import format_duration
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Status

TEMPLATE = "index.html"


@dataclass(frozen=True)
class KnownRun:
    """A run, with what its folder and its lease say of it."""

    local: Path
    """The run's folder on the driver's disk."""
    status: Status
    state: str
    """The state by status and lease: `lost` where the owner has died before the status said that the run ended."""


@dataclass(frozen=True)
class IndexRow:
    """The line of the page on one run."""

    name: str
    state: str
    started: str
    took: str
    best: str
    """The best metric with its name; without one, as for a job, how much is done."""
    note: str = ""
    link: str = ""
    """Address of the run's report, relative to the folder of all runs; empty: there is no report."""


@dataclass(frozen=True)
class Index:
    """The content of the page."""

    root: str
    """The platform's root folder."""
    groups: tuple[tuple[IndexRow, ...], ...]
    """Groups of lines, the latest first: a job with its stages, or a search or stage alone."""
    command: str
    """Shell command that makes a report."""
    made: datetime = field(default_factory=lambda: datetime.now(UTC))


def gather_index(root: Path, runs: Sequence[KnownRun], unreadable: Mapping[str, UserError]) -> Index:
    """Return the content of the page over all runs of a root.

    Args:
        root: the platform's root folder.
        runs: the runs below it.
        unreadable: by the run's name, why its status cannot be read.
    """
    by_name = {run.local.name: run for run in runs}
    jobs = {name: _stages_of(run.local) for name, run in by_name.items() if (run.local / JOB).is_file()}
    in_jobs = {name for stages in jobs.values() for name in stages}
    top_level = [run for name, run in by_name.items() if name not in in_jobs]
    groups = []
    for run in sorted(top_level, key=lambda one: one.status.started, reverse=True):
        stages = jobs.get(run.local.name, [])
        rows = [_row(run, _link(run.local))]
        rows += [
            _row(by_name[name], _link(by_name[name].local) or _link(run.local, f"#stage-{index}"))
            for index, name in enumerate(_begun_stages(root, stages), start=1)
            if name in by_name
        ]
        groups.append(tuple(rows))
    groups += [
        (IndexRow(name, "unreadable", "", "", "", note=mask_credentials(error.what)),)
        for name, error in sorted(unreadable.items())
    ]
    return Index(mask_credentials(str(root)), tuple(groups), f"{command_line('report')} RUN")


def render_index(index: Index) -> str:
    """Return the page as HTML."""
    return environment().get_template(TEMPLATE).render(index=index)


def _stages_of(local: Path) -> list[str]:
    """Return the names of the runs of a job's stages, in order; none where the job's file is damaged."""
    try:
        job = RunStore(local.name, str(local), local).read_json(JOB) or {}
        return [str(stage["run"]) for stage in job["stages"]]
    except (UserError, KeyError, TypeError):  # the job is listed without its stages, and these by themselves
        return []


def _begun_stages(root: Path, stages: Sequence[str]) -> list[str]:
    """Return the stages that have begun: the job's own report has a section on each of them."""
    return [run for run in stages if (root / RUNS / run / RECIPE).is_file()]


def _row(run: KnownRun, link: str) -> IndexRow:
    status = run.status
    best = status.best
    best_text = f"{status.step} of {status.total} {status.unit}"
    if best is not None:
        best_text = f"{best.metric.removeprefix('val/')} {best.value:.4f}"
    return IndexRow(
        name=run.local.name,
        state=run.state,
        started=datetime.fromtimestamp(status.started, UTC).strftime(DATE_FORMAT),
        took=format_duration(max(0.0, (status.ended or status.updated) - status.started)),
        best=best_text,
        note=mask_credentials(status.why),
        link=link,
    )


def _link(local: Path, fragment: str = "") -> str:
    """Return the address of a run's report, with a fragment such as `#stage-1`; empty where there is no report."""
    return f"{quote(local.name)}/{REPORT}{fragment}" if (local / REPORT).is_file() else ""
