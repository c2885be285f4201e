"""A job's report: made from run folders, written next to them, and handed to MLflow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job
from scalablevit.report.collect import gather
from scalablevit.report.page import render
from scalablevit.run_files import JOB, REPORT
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import brief
from scalablevit.tracking.outbox import Outbox
from scalablevit.training.storage import put_text


def begin_job(job: Job, stages: Sequence[ResolvedStage], store: RunStore) -> None:
    """Write down in the job's own folder which stages it has: its page can be made at any time."""
    put_text(str(store.local), JOB, json.dumps(_known(job, stages, {}), indent=1))


def publish_job(
    job: Job, stages: Sequence[ResolvedStage], results: Mapping[str, StageResult], store: RunStore, outbox: Outbox
) -> None:
    """Write down what has become of the job's stages, make its page, and record it for MLflow.

    Args:
        results: of the stages that have finished.
        store: the job's own folder.
    """
    publish(store.local, outbox, job.uid, _known(job, stages, results))


def _known(job: Job, stages: Sequence[ResolvedStage], results: Mapping[str, StageResult]) -> dict[str, Any]:
    """Content of `job.json`."""
    known = []
    for stage in stages:
        own = RunStore.at(stage.run_name, stage.stage.cluster.storage, job.root)
        elsewhere = "" if own.location == str(own.local) else own.location
        registered = _registered(results.get(stage.name))
        known.append({"name": stage.name, "run": stage.run_name, "storage": elsewhere, "registered": registered})
    return {"recipe": job.recipe, "stages": known}


def publish(folder: Path, outbox: Outbox, uid: str, job: Mapping[str, Any] | None = None) -> None:
    """Make the page of a job or a search and record it for MLflow; one that fails is reported and ends nothing.

    Args:
        job: content of a job's `job.json`, written first.
    """
    try:
        if job is not None:
            put_text(str(folder), JOB, json.dumps(job, indent=1))
        put_text(str(folder), REPORT, render(gather(folder)))
        outbox.artifact(uid, folder / REPORT)
        print(f"report: {folder / REPORT}", flush=True)
    except Exception as error:  # whatever a page fails of, the job is worth more
        print(f"{REPORT} was not made: {brief(error, '')}", flush=True)


def _registered(result: StageResult | None) -> str:
    return f"{result.registered_as} version {result.version}" if result and result.version else ""
