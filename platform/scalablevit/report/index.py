"""A page over all runs of a root, with links to their reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from scalablevit.config.commands import command_line
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.report.overview import DATE
from scalablevit.report.page import environment
from scalablevit.run_files import JOB, RECIPE, REPORT, RUNS
from scalablevit.runs.console import format_duration
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Status

TEMPLATE = "index.html"


@dataclass(frozen=True)
class KnownRun:
    """A run as its folder and its lease say."""

    local: Path
    status: Status
    state: str
    """Such as `lost`, whatever the status says."""


@dataclass(frozen=True)
class IndexRow:
    """What the page shows of a run."""

    name: str
    state: str
    started: str
    took: str
    best: str
    """The best metric with its name; of a job how many of its stages are done."""
    note: str = ""
    link: str = ""
    """To its report, relative to the folder of all runs; empty: there is none."""


@dataclass(frozen=True)
class Index:
    """What the page shows."""

    root: str
    groups: tuple[tuple[IndexRow, ...], ...]
    """The latest first: a job with its stages, or a search or stage alone."""
    command: str
    """Makes a report."""
    made: datetime = field(default_factory=lambda: datetime.now(UTC))


def gather_index(root: Path, runs: Sequence[KnownRun], unreadable: Mapping[str, UserError]) -> Index:
    """Return what the page shows of runs.

    Args:
        root: the platform's root.
        runs: those below it.
        unreadable: by name, runs whose status cannot be read, and why.
    """
    known = {each.local.name: each for each in runs}
    jobs = {name: _stages_of(each.local) for name, each in known.items() if (each.local / JOB).is_file()}
    in_jobs = {run for stages in jobs.values() for run in stages}
    alone = [each for name, each in known.items() if name not in in_jobs]
    groups = []
    for each in sorted(alone, key=lambda one: one.status.started, reverse=True):
        stages = jobs.get(each.local.name, [])
        rows = [_row(each, _link(each.local))]
        rows += [
            _row(known[run], _link(known[run].local) or _link(each.local, f"#stage-{place}"))
            for place, run in enumerate(_begun(root, stages), start=1)
            if run in known
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
    """Names of the runs of a job's stages, in order; none where its file is damaged."""
    try:
        known = RunStore(local.name, str(local), local).read_json(JOB) or {}
        return [str(stage["run"]) for stage in known["stages"]]
    except (UserError, KeyError, TypeError):  # the job is shown without its stages, and these by themselves
        return []


def _begun(root: Path, stages: Sequence[str]) -> list[str]:
    """Those that the job's own report has a section of."""
    return [run for run in stages if (root / RUNS / run / RECIPE).is_file()]


def _row(run: KnownRun, link: str) -> IndexRow:
    status = run.status
    best = status.best
    words = f"{status.step} of {status.total} {status.unit}"
    if best is not None:
        words = f"{best.metric.removeprefix('val/')} {best.value:.4f}"
    return IndexRow(
        name=run.local.name,
        state=run.state,
        started=datetime.fromtimestamp(status.started, UTC).strftime(DATE),
        took=format_duration(max(0.0, (status.ended or status.updated) - status.started)),
        best=words,
        note=mask_credentials(status.why),
        link=link,
    )


def _link(local: Path, place: str = "") -> str:
    """Return the address of a run's report, and of a place in it; empty where there is no report."""
    return f"{quote(local.name)}/{REPORT}{place}" if (local / REPORT).is_file() else ""
