"""A job's report: made from run folders, written next to them, and handed to MLflow."""

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scalablevit.pipeline.registration import may_send_images
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job
from scalablevit.report.collect import gather
from scalablevit.report.page import Page, Stage, render
from scalablevit.run_files import FOR_MLFLOW, JOB, REPORT
from scalablevit.runs.result import StageResult
from scalablevit.runs.run_store import RunStore
from scalablevit.tasks.capabilities import GREY
from scalablevit.tracking.connection import format_error
from scalablevit.tracking.outbox import Outbox
from scalablevit.training.storage import put_text

GREY_SIDE = 96
"""Pixels of what stands for an image that is not sent."""


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
    hidden = {stage.name for stage in stages if not may_send_images(stage.stage)}
    publish(store.local, outbox, job.uid, _known(job, stages, results), hidden)


def _known(job: Job, stages: Sequence[ResolvedStage], results: Mapping[str, StageResult]) -> dict[str, Any]:
    """Content of `job.json`."""
    known = []
    for stage in stages:
        own = RunStore.at(stage.run_name, stage.stage.cluster.storage, job.root)
        elsewhere = "" if own.location == str(own.local) else own.location
        registered = _registered(results.get(stage.name))
        known.append({"name": stage.name, "run": stage.run_name, "storage": elsewhere, "registered": registered})
    return {"recipe": job.recipe, "stages": known}


def publish(
    folder: Path,
    outbox: Outbox,
    uid: str,
    job: Mapping[str, Any] | None = None,
    hidden: Collection[str] = (),
) -> None:
    """Make the page of a job or a search and record it for MLflow; one that fails is reported and ends nothing.

    Args:
        folder: of the job or the search.
        outbox: of the folder.
        uid: of its run.
        job: content of a job's `job.json`, written first.
        hidden: stages whose images stay on this machine: MLflow gets another page.
    """
    try:
        if job is not None:
            put_text(str(folder), JOB, json.dumps(job, indent=1))
        page = gather(folder)
        put_text(str(folder), REPORT, render(page))
        if any(stage.name in hidden for stage in page.stages):
            put_text(str(folder / FOR_MLFLOW), REPORT, _render_without_images(page, hidden))
            outbox.artifact(uid, folder / FOR_MLFLOW / REPORT)
        else:
            outbox.artifact(uid, folder / REPORT)
        print(f"report: {folder / REPORT}", flush=True)
    except Exception as error:  # whatever a page fails of, the job is worth more
        print(f"{REPORT} was not made, or not recorded for MLflow: {format_error(error, '')}", flush=True)


def _render_without_images(page: Page, hidden: Collection[str]) -> str:
    """The page as HTML, with a grey image in place of each of those stages' images."""
    import cv2
    import numpy as np

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


def _registered(result: StageResult | None) -> str:
    return f"{result.registered_as} version {result.version}" if result and result.version else ""
