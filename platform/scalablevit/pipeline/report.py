"""A job's report: made from run folders, written to the job's folder, and recorded for MLflow.

What makes the page is imported when the first one is made: before Ray starts, loading matplotlib and models takes
seconds in which nothing else happens.
"""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.pipeline.registration import may_send_images
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job
from scalablevit.run_files import FOR_MLFLOW, JOB, REPORT
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import format_error
from scalablevit.tracking.outbox import Outbox
from scalablevit.training.storage import put_text

if TYPE_CHECKING:
    from scalablevit.report.page import Page

GREY_SIDE = 96
"""Side, in pixels, of the grey image that replaces one that is not sent."""


def begin_job(job: Job, stages: Sequence[ResolvedStage], store: RunStore) -> None:
    """Write `job.json`, the job's stages, into its folder, so that its report can be made at any time.

    Args:
        job: what the stages share.
        stages: of the job.
        store: the job's own folder.
    """
    put_text(str(store.local), JOB, json.dumps(_job_content(job, stages, {}), indent=1))


def publish_job(
    job: Job, stages: Sequence[ResolvedStage], results: Mapping[str, StageResult], store: RunStore, outbox: Outbox
) -> None:
    """Write the results of the job's stages, make its report, and record it for MLflow.

    Args:
        job: what the stages share.
        stages: of the job.
        results: of the stages that have finished, by name.
        store: the job's own folder.
        outbox: of the job.
    """
    hidden = {stage.name for stage in stages if not may_send_images(stage.stage)}
    publish(store.local, outbox, job.uid, _job_content(job, stages, results), hidden)


def _job_content(job: Job, stages: Sequence[ResolvedStage], results: Mapping[str, StageResult]) -> dict[str, Any]:
    """Return the content of `job.json`."""
    known = []
    for stage in stages:
        own = RunStore.at(stage.run_name, stage.stage.cluster.storage, job.root)
        elsewhere = "" if own.location == str(own.local) else own.location
        registered = _format_version(results.get(stage.name))
        known.append({"name": stage.name, "run": stage.run_name, "storage": elsewhere, "registered": registered})
    return {"recipe": job.recipe, "stages": known}


def publish(
    folder: Path,
    outbox: Outbox,
    uid: str,
    job: Mapping[str, Any] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Make the report of a job or a search and record it for MLflow; a failure is printed and stops nothing.

    Args:
        folder: of the job or the search.
        outbox: of the folder.
        uid: of its run in MLflow.
        job: content of a job's `job.json`, written first; None: not written.
        hidden: stages whose images stay on this machine: MLflow gets a report without them.
    """
    try:
        if job is not None:
            put_text(str(folder), JOB, json.dumps(job, indent=1))
        from scalablevit.report.collect import gather
        from scalablevit.report.page import render

        page = gather(folder)
        put_text(str(folder), REPORT, render(page))
        if any(stage.name in hidden for stage in page.stages):
            put_text(str(folder / FOR_MLFLOW), REPORT, _render_without_images(page, hidden))
            outbox.artifact(uid, folder / FOR_MLFLOW / REPORT)
        else:
            outbox.artifact(uid, folder / REPORT)
        print(f"report: {folder / REPORT}", flush=True)
    except Exception as error:  # a job must not fail because of its report
        print(f"{REPORT} was not made, or not recorded for MLflow: {format_error(error, '')}", flush=True)


def _render_without_images(page: "Page", hidden: Collection[str]) -> str:
    """Return the report as HTML, with a grey image in place of each image of some stages."""
    import cv2
    import numpy as np

    from scalablevit.report.page import Stage, render
    from scalablevit.tasks.capabilities import GREY

    grey = cv2.imencode(".jpg", np.full((GREY_SIDE, GREY_SIDE, 3), GREY, np.uint8))[1].tobytes()
    with tempfile.TemporaryDirectory() as scratch:
        read = [stage for stage in page.stages if isinstance(stage, Stage)]
        for stage in read:
            for case in (*stage.findings.cases, *stage.findings.worst) if stage.findings else ():
                (Path(scratch) / Path(case.picture).name).write_bytes(grey)
        stages = tuple(
            replace(stage, pictures=Path(scratch)) if isinstance(stage, Stage) and stage.name in hidden else stage
            for stage in page.stages
        )
        return render(replace(page, stages=stages))


def _format_version(result: StageResult | None) -> str:
    return f"{result.registered_as} version {result.version}" if result and result.version else ""
