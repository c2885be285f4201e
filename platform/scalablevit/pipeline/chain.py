"""A recipe's stages in order, under one parent run, and the table at the end."""

import hashlib
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scalablevit.config.commands import command_line
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import tracking_uri
from scalablevit.pipeline import cluster
from scalablevit.pipeline.report import begin_job, publish_job
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.resolved_recipe import write_resolved
from scalablevit.pipeline.stage import Job, run_stage
from scalablevit.run_files import RESOLVED, RUNS
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.console import format_duration, ignore_output_errors
from scalablevit.runs.result import StageResult, useless_note
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import FAILED_DRAIN_S, RunSession
from scalablevit.runs.signals import wait_saving_first
from scalablevit.text import format_table, paint
from scalablevit.tracking.connection import tracking_override, without_credentials
from scalablevit.tracking.outbox import now_ms
from scalablevit.tracking.records import StepMetrics

STOP_S = FAILED_DRAIN_S + 15
"""Longest wait, in seconds, for interrupted stages to record their end, send it to MLflow, and release their
folders."""

SHOWN_S = 0.5
"""Parts of a stage that took fewer seconds are not printed."""


def run_chain(
    recipe: Recipe, stages: Sequence[ResolvedStage], root: Path, origins: dict[str, dict[str, str]] | None = None
) -> list[StageResult]:
    """Run the stages on the connected cluster; those that have finished already are skipped.

    The parent MLflow run ends FINISHED, FAILED or KILLED, as the job does.

    Args:
        recipe: the recipe that the stages are of.
        stages: in the recipe's order.
        root: the platform's root.
        origins: by stage, tags that say which search found its values; None: none.

    Returns:
        The results, in the order of running.

    Raises:
        UserError: another job owns a run, or training found something that the user must fix.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
        KeyboardInterrupt: all stages have recorded their end.
    """
    digest = hashlib.sha256(" ".join(stage.hash for stage in stages).encode()).hexdigest()[:12]
    store = RunStore.open(f"{recipe.name}-{digest}", None, root)
    tracking = stages[0].stage.tracking
    address = tracking_uri(tracking.uri, root)
    names = ", ".join(stage.name for stage in stages)
    with (
        ignore_output_errors(),
        RunSession(store, address) as session,
        session.at_work(names, len(stages), "stages") as status_file,
    ):
        job, outbox = Job(root, recipe.name, session.uid, address, origins or {}), session.outbox
        outbox.run(job.uid, store.name, experiment=tracking.experiment, tags={"stages": names})
        results: dict[str, StageResult] = {}
        try:
            begin_job(job, stages, store)
            write_resolved(recipe, stages, store.local / RESOLVED)
            for group in group_stages(stages, cluster.has_room):
                status_file.update(stage=", ".join(stage.name for stage in group), step=len(results))
                results |= run_group(job, group, results)
                outbox.metrics(job.uid, [_best_metrics(results)])
            status_file.update(stage=names, step=len(results))
            publish_job(job, stages, results, store, outbox)
        except Exception as error:
            # the report shows how far the job came
            clean_up(error, (f"the report of {store.name}", lambda: publish_job(job, stages, results, store, outbox)))
            raise
        outbox.end(job.uid, "FINISHED")
    return list(results.values())


def group_stages(
    stages: Sequence[ResolvedStage], has_room: Callable[[Sequence[ResolvedStage]], bool]
) -> Iterator[list[ResolvedStage]]:
    """Yield groups of stages in the order of running; the stages of a group run in parallel.

    A group holds stages whose parents are in earlier groups, in the recipe's order, as many as there is room for.

    Args:
        stages: in the recipe's order.
        has_room: whether the cluster can run all of some stages at once.
    """
    waiting, done = list(stages), set[str]()
    while waiting:
        group: list[ResolvedStage] = []
        for stage in waiting:
            if done.issuperset(stage.parents) and (not group or has_room([*group, stage])):
                group.append(stage)
        yield group
        done |= {stage.name for stage in group}
        waiting = [stage for stage in waiting if stage.name not in done]


def run_group(job: Job, group: list[ResolvedStage], earlier: dict[str, StageResult]) -> dict[str, StageResult]:
    """Run a group of stages in parallel; when one fails, the others still run to their end before its error is raised.

    The first Ctrl-C lets the stages that train save at their next step and end.

    Args:
        job: what the stages share.
        group: the stages.
        earlier: results of the stages before, by name.

    Returns:
        The stages' results, by name.

    Raises:
        KeyboardInterrupt: all stages have recorded their end.
    """
    if len(group) > 1:
        print(f"running in parallel: {', '.join(stage.name for stage in group)}", flush=True)
    results: dict[str, StageResult] = {}
    failures: list[BaseException] = []
    disconnecting = threading.Event()
    # events, not `join`: before Python 3.13 a thread counts as ended when a signal interrupts its join
    ended = {stage.name: threading.Event() for stage in group}

    def run(stage: ResolvedStage) -> None:
        try:
            results[stage.name] = run_stage(job, stage, earlier)
        except BaseException as failure:  # the first is raised below, in the main thread
            others = len(group) > 1 or job.stopping.is_set()
            if others and not isinstance(failure, KeyboardInterrupt) and not disconnecting.is_set():
                print(f"[{stage.name}] failed: {failure}", flush=True)
            failures.append(failure)
        finally:
            ended[stage.name].set()

    try:
        for stage in group:
            # daemons, so that the process can end after an interrupt whatever they do
            threading.Thread(target=run, args=(stage,), name=stage.name, daemon=True).start()
        wait_saving_first(ended.values(), job.stop_training)
    except BaseException:
        job.stopping.set()
        disconnecting.set()
        cluster.disconnect()  # ends the trainings: Ray raises in the threads, which record their end
        for event in ended.values():
            event.wait(timeout=STOP_S)
        raise
    if job.stopping.is_set():
        raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return {stage.name: results[stage.name] for stage in group}


def _best_metrics(results: dict[str, StageResult]) -> StepMetrics:
    """Return the stages' best metrics as a record of the parent run, where jobs are compared."""
    values = {f"{name}/{result.metric.removeprefix('val/')}": result.value for name, result in results.items()}
    return {"step": 0, "time_ms": now_ms(), "metrics": values}


def format_results(results: Sequence[StageResult], root: Path, address: str) -> str:
    """Return a table of the results, where the time went, and the commands that one may want next.

    Args:
        results: of the stages, in order.
        root: the platform's root.
        address: MLflow's; credentials in it are not shown.
    """
    rows = [("stage", "best", "at step", "last", "at step", "images/s", "minutes", "registered model")]
    for result in results:
        # since an earlier job has finished it, another run may have made the newest version of that name
        alias = "" if result.skipped else " @candidate"
        version = f"{result.registered_as} v{result.version}{alias}" if result.version else "not registered yet"
        rows.append(
            (
                result.name + (" (done before)" if result.skipped else ""),
                f"{result.metric.removeprefix('val/')} {result.value:.4f}",
                str(result.step),
                "-" if result.last_value is None else f"{result.last_value:.4f}",
                str(result.last_step or "-"),
                f"{result.images_per_s:.0f}",
                f"{result.minutes:.1f}",
                version,
            )
        )
    spent = [f"time of {result.name}: {_profile(result.profile)}" for result in results if result.profile]
    last = results[-1]
    model = f"models:/{last.registered_as}/{last.version}" if last.version else last.run_name
    unregistered = [f"{result.name}: {result.tracking}" for result in results if not result.version]
    uri = without_credentials(address)
    sqlite = uri.startswith("sqlite")
    programs = Path(sys.executable).parent
    root_text, mlflow = (shlex.quote(str(path)) for path in (root, programs / "mlflow"))
    look = f"{mlflow} ui --backend-store-uri {shlex.quote(uri)}" if sqlite else f"open {uri}"
    where = f"--root {root_text}{tracking_override(address, root)}"
    evaluate, predict, promote, runs = (
        command_line(verb, programs) for verb in ("evaluate", "predict", "promote", "runs")
    )
    useless = {result.name: useless_note(result.metric, result.value, len(result.classes)) for result in results}
    compare = f"  promote the candidate     {promote} {shlex.quote(last.registered_as)} {where}"
    # MLflow's server starts programs of this environment by their names
    serve = (
        f"  serve the model           PATH={shlex.quote(str(programs))}:$PATH MLFLOW_TRACKING_URI={shlex.quote(uri)} "
        f"{mlflow} models serve -m {shlex.quote(model)} --env-manager local -p 5001"
    )
    return "\n".join(
        [
            format_table(rows),
            *spent,
            *unregistered,
            *(paint(f"{name}: {note}", "yellow") for name, note in useless.items() if note),
            "",
            paint("next:", "bold"),
            f"  look at runs and models   {look}",
            f"  predict your images       {predict} {shlex.quote(model)} IMAGES --out DIR {where}",
            f"  evaluate the model        {evaluate} {shlex.quote(model)} {where}",
            *(
                [compare, serve] if last.version and not useless[last.name] else []
            ),  # without a version `unregistered` says what to do
            "  go on or repeat           submit the same command again: finished stages are skipped, others resume",
            f"  the runs and their state  {runs} list --root {root_text}",
            f"  run folders               {root / RUNS}",
        ]
    )


def _profile(seconds: dict[str, float]) -> str:
    """Return each part with its time and share, such as `step 3.1 min (80 %)`."""
    total = max(sum(seconds.values()), 1e-9)
    return ", ".join(
        f"{part} {format_duration(part_s)} ({100 * part_s / total:.0f} %)"
        for part, part_s in seconds.items()
        if part_s >= SHOWN_S
    )
