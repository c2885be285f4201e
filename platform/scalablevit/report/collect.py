"""Collects the content of the report of a job, a stage or a search, from run folders alone."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalablevit.config.commands import command_line
from scalablevit.config.data import Data
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.recipe import Cluster
from scalablevit.config.stored import parse_stored, stored_stage
from scalablevit.config.task_info import task_info
from scalablevit.config.upgrade import upgrade
from scalablevit.inspection.statistics import DataStatistics
from scalablevit.inspection.statistics_table import statistics_rows
from scalablevit.report.findings import load_findings
from scalablevit.report.overview import NextStep, Overview, WorkTime, machine, overview, steps_of_stages, work_time
from scalablevit.report.page import Page, Part, Search, Stage, UnreadStage
from scalablevit.run_files import (
    ATTEMPTS,
    BEST_RECIPE,
    ENVIRONMENT,
    ERROR_ANALYSIS,
    IDENTITY,
    JOB,
    PLOTS,
    RECIPE,
    SPACE,
    START_NOTE,
    STATISTICS,
    TRIAL_TABLE,
    WEIGHTS,
)
from scalablevit.runs.console import format_duration
from scalablevit.runs.metrics import Row, metrics_by_step
from scalablevit.runs.result import StageResult, load_result
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import Status, read_status, store_of
from scalablevit.tracking import tags
from scalablevit.tracking.outbox import outbox_of, read_lines
from scalablevit.tracking.records import ParamsRecord, RunRecord, TagsRecord
from scalablevit.training.attempt_events import Lost, StartupTimings, read_attempts

PLOT_CAPTIONS = {
    "history": "The best value so far by trial",
    "curves": "Evaluations of all trials by step; the best in colour",
    "importance": "How much each searched value matters",
    "parallel_coordinates": "Which values went together, a line for each trial",
}
COLUMNS = ("at_step", "epochs_trained")
"""Columns of a table of trials whose names are shown with spaces; names of searched values stay as in recipes."""
PACKAGES = ("torch", "ray", "timm")
"""Packages whose versions the report names."""


def gather(folder: Path) -> Page:
    """Return the content of the page of a run's folder.

    Raises:
        UserError: it is no run's folder, or that of a search that has not ended.
    """
    if (folder / JOB).is_file():
        return _job(folder)
    if (folder / SPACE).is_file():
        return Page(folder.name, _search_overview(folder), {}, searches=(_search(folder),))
    if (folder / RECIPE).is_file():
        stage = _stage(store_of(folder), None)
        return Page(folder.name, _overview(folder, [stage]), {}, stages=(stage,))
    raise UserError(
        "there is no job, stage or search in this folder",
        where=str(folder),
        fix=f"name a folder below <root>/runs, as `{command_line('runs')} list` shows them; is --root right?",
    )


def _job(folder: Path) -> Page:
    job = RunStore(folder.name, str(folder), folder).read_json(JOB) or {}
    stages, waiting, searches = [], [], []
    for stage in job["stages"]:
        local = folder.parent / stage["run"]
        if not (local / RECIPE).is_file():
            waiting.append(stage["name"])
            continue
        stages.append(_stage(RunStore(stage["run"], stage["storage"] or str(local), local), stage["registered"]))
        search = folder.parent / _read_records(local).get(tags.SEARCH, "")
        if (search / TRIAL_TABLE).is_file():
            searches.append(_search(search))
    status = read_status(folder)
    facts = {
        "recipe": job["recipe"],
        "run folder": mask_credentials(str(folder)),
        "tracking": mask_credentials(status.tracking) if status else "",
        "not begun": ", ".join(waiting),
    }
    overview_of_job = _overview(folder, stages, waiting=bool(waiting), status=status)
    return Page(folder.name, overview_of_job, facts, tuple(stages), tuple(searches))


def _overview(
    folder: Path, stages: Sequence[Stage | UnreadStage], *, waiting: bool = False, status: Status | None = None
) -> Overview:
    """Return the first screen of a job or a stage.

    Args:
        folder: the folder of the job or stage.
        stages: the stages that have begun.
        waiting: whether there are stages that have not begun.
        status: the job's status; it says `running` while the job makes its page.
    """
    results = [(stage.result, stage.registered) for stage in stages if stage.result is not None]
    states = [stage.state for stage in stages]
    ended = next((state for state in ("failed", "killed") if state in states), "")
    complete = not waiting and set(states) == {"finished"}
    state = "finished" if complete else ended or (status.state if status is not None else "".join(states[-1:]))
    tracking = mask_credentials(status.tracking) if status is not None else ""
    steps = steps_of_stages(folder, results, tracking, unfinished=not complete)
    return overview(state or "unknown", [stage.time for stage in stages], [stage.machine for stage in stages], steps)


def _stage(store: RunStore, registered: str | None) -> Stage | UnreadStage:
    """Return the content of a stage; where its recipe cannot be read here, what can be read without the recipe."""
    local, result, status = store.local, load_result(store), read_status(store.local)
    content = (local / RECIPE).read_bytes()
    recipe = content.decode("utf-8", "replace")
    recorded = _read_records(local)
    name = recorded.get("stage", store.name)
    state = "finished" if result else status.state if status else "unknown"
    time, host = work_time(store, status, result), status.host if status is not None else ""
    try:
        stage = stored_stage(parse_stored(content, str(local / RECIPE)), str(local / RECIPE), imports=True)
    except UserError as error:  # the other stages of the job are worth a page
        problem = mask_credentials(f"{error.where}: {error.what}")
        return UnreadStage(name, state, problem, mask_credentials(error.fix), mask_credentials(recipe),
                           _content(result), registered, time, host)  # fmt: skip
    uid = (store.read_json(IDENTITY) or {}).get("uid", "")
    rows = metrics_by_step(outbox_of(local), uid)
    return Stage(
        name=name,
        kind=stage.task.kind,
        model=stage.model.name,
        state=state,
        why="" if result or status is None else status.why,
        best_metric=task_info(stage.task.kind).best_metric,
        rows=rows,
        recipe=mask_credentials(recipe),
        facts=_cost(local, stage.cluster, rows, result),
        lineage=_lineage(store, stage.data, recorded, result, registered),
        result=_content(result),
        registered=registered,
        profile=tuple(
            Part(name, seconds, format_duration(seconds))
            for name, seconds in (result.profile if result else {}).items()
        ),
        findings=load_findings(local / ERROR_ANALYSIS),
        pictures=local / ERROR_ANALYSIS,
        statistics=_statistics(local),
        time=time,
        machine=machine(stage.cluster, host, result.device if result else ""),
    )


def _content(result: StageResult | None) -> dict[str, Any] | None:
    """Return the content of `result.json`, without credentials."""
    return None if result is None else {**vars(result), "reason": mask_credentials(result.reason)}


def _statistics(local: Path) -> tuple[tuple[str, str, str], ...]:
    """Return the table of the data's statistics; empty where the run has none."""
    try:
        statistics = DataStatistics.from_json((local / STATISTICS).read_bytes())
    except (OSError, ValueError):  # a run of an earlier version, or a damaged file: make the page without them
        return ()
    return tuple(statistics_rows(statistics))


def _read_records(local: Path) -> dict[str, str]:
    """Return tags and parameters of a run, as the outbox has them for MLflow; later values win."""
    recorded: dict[str, str] = {}
    for line in read_lines(outbox_of(local)):
        if isinstance(line.record, RunRecord | TagsRecord):
            recorded |= line.record.tags
        elif isinstance(line.record, ParamsRecord):
            recorded |= line.record.params
    return recorded


def _cost(local: Path, cluster: Cluster, rows: Mapping[int, Row], result: StageResult | None) -> dict[str, str]:
    """Return facts on the stage's time and resources, by name."""
    events = read_attempts(local / ATTEMPTS)[0]
    begun = sum(isinstance(event, StartupTimings) for event in events)
    lost = sum(isinstance(event, Lost) for event in events)
    facts = {
        "workers": f"{cluster.workers} x ({cluster.cpus_per_worker:g} CPU, {cluster.gpus_per_worker:g} GPU)",
        "attempts": f"{begun}; workers were lost {lost} times" if lost or begun > 1 else f"{begun or ''}",
    }
    if result is not None:
        hours = cluster.workers * result.minutes / 60
        per_worker = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
        reserved = ", ".join(f"{hours * count:.3g} {name}-hours" for name, count in per_worker.items() if count)
        facts["wall time"] = f"{format_duration(60 * result.minutes)} (the attempt that finished)"
        facts["reserved"] = f"{reserved} (workers x wall time)"
        facts["ended"] = mask_credentials(result.reason)
    peaks = {"memory of a worker": "process_memory_gib", "GPU memory": "gpu_peak_allocated_gib"}
    for name, metric in peaks.items():
        values = [float(row[column]) for row in rows.values() for column in row if column.endswith(f"/{metric}")]
        facts[name] = f"at most {max(values):.2f} GiB" if values else ""
    if (local / WEIGHTS).is_file():
        facts["weights"] = f"{(local / WEIGHTS).stat().st_size / 1e6:.1f} MB"
    facts["software"] = _software(local)
    return facts


def _software(local: Path) -> str:
    """Return versions and operating system as the stage recorded them; empty where it recorded none."""
    try:
        environment = json.loads((local / ENVIRONMENT).read_bytes())
        packages = environment["packages"]
        versions = [f"{name} {packages[name]}" for name in PACKAGES if name in packages]
        return ", ".join([f"Python {environment['python']}", *versions, str(environment["platform"])])
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged: make the page without it
        return ""


def _lineage(
    store: RunStore, data: Data, recorded: Mapping[str, str], result: StageResult | None, registered: str | None
) -> dict[str, str]:
    """Return the lineage from the data to the registered version, by name."""
    start = (store.read(START_NOTE) or b"").decode().partition("\n")[0]
    counts = ", ".join(f"{recorded[name]} {words}" for name, words in
                       {"train_samples": "training images", "val_samples": "validation images",
                        "classes": "classes"}.items() if name in recorded)  # fmt: skip
    search = f"trial {recorded.get(tags.SEARCH_TRIAL)} of {recorded[tags.SEARCH]}" if tags.SEARCH in recorded else ""
    parent = recorded.get(tags.PARENT_VERSION, "")
    steps = {
        "Data": f"{data.source} {data.root}: {counts}; digest {recorded.get(tags.DATA_DIGEST, 'not recorded')}",
        "Recipe and code": f"recipe {recorded.get(tags.RECIPE_HASH, 'not recorded')}, "
        f"code {recorded.get(tags.CODE_DIGEST, 'not recorded')}",
        "Values from a search": search,
        "Parent version": parent and f"{parent}, weights sha256 {recorded.get(tags.INIT_SHA256, 'not recorded')}",
        "Start of the last attempt": start,
        "Run": mask_credentials(store.location),
    }
    if result is not None:
        steps["Best checkpoint"] = f"{result.checkpoint}, at step {result.step}"
        steps["Weights"] = f"sha256 {result.weights_sha256}"
        if registered is not None:
            steps["Registered version"] = registered or "not registered when this page was made"
    return {name: mask_credentials(fact) for name, fact in steps.items()}


def _search_overview(folder: Path) -> Overview:
    """Return the first screen of a search that has ended; others have no page."""
    store, status = store_of(folder), read_status(folder)
    time: WorkTime | None = work_time(store, status)
    steps = []
    if (folder / BEST_RECIPE).is_file():
        steps.append(NextStep("Look at the recipe with the best trial's values:", str(folder / BEST_RECIPE)))
    return overview("finished", [time], [status.host if status is not None else ""], tuple(steps))


def _search(folder: Path) -> Search:
    """Return the content of a search that has ended.

    Raises:
        UserError: the search has not ended, or its space is damaged.
    """
    if not (folder / TRIAL_TABLE).is_file():
        raise UserError(f"this search has not ended: there is no {TRIAL_TABLE}", where=str(folder),
                        fix="submit its command again; its report comes at its end")  # fmt: skip
    space = (folder / SPACE).read_bytes()
    parsed = upgrade(parse_stored(space, str(folder / SPACE)), str(folder / SPACE))
    with (folder / TRIAL_TABLE).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    best_recipe = folder / BEST_RECIPE
    best, status, sign = header.index("best"), header.index("status"), -1 if parsed["mode"] == "max" else 1
    # as in `rank_trials`, a failed trial is not the best, whatever it reached
    rows.sort(key=lambda row: (row[status] == "failed", sign * float(row[best]) if row[best] else float("inf")))
    statuses = Counter(row[status] for row in rows)
    names = tuple(name.replace("_", " ") if name in COLUMNS else name for name in header)
    plots = {folder / PLOTS / f"{name}.png": words for name, words in PLOT_CAPTIONS.items()}
    facts = {
        "metric": f"{parsed['mode']} of {parsed['metric']} over a trial's evaluations",
        "best": ", ".join(
            f"{name} {_round_cell(cell)}"
            for row in rows[:1]
            if row[status] != "failed"
            for name, cell in zip(names, row, strict=True)
            if cell
        ),
        "trials": f"{len(rows)}: " + ", ".join(f"{count} {status}" for status, count in statuses.items()),
        "searcher": parsed["searcher"],
        "scheduler": parsed["scheduler"]["kind"],
        "folder": mask_credentials(str(folder)),
    }
    return Search(
        name=folder.name,
        facts=facts,
        header=names,
        trials=tuple(tuple(map(_round_cell, row)) for row in rows),
        plots=tuple((file, words) for file, words in plots.items() if file.is_file()),
        best_recipe=mask_credentials(best_recipe.read_text(encoding="utf-8")) if best_recipe.is_file() else "",
        space=mask_credentials(space.decode("utf-8", "replace")),
    )


def _round_cell(cell: str) -> str:
    """Return a decimal number with four significant digits; other text as it is, without credentials of addresses."""
    try:
        return f"{float(cell):.4g}" if "." in cell or "e-" in cell else mask_credentials(cell)
    except ValueError:
        return mask_credentials(cell)
