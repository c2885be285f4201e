"""`infra/job.py` submits a job and shows its log without Ray's own lines, and everything else."""

import asyncio
import inspect
import io
import logging
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray._private.runtime_env import working_dir
from ray.dashboard.modules.job import job_manager, job_supervisor
from ray.job_submission import JobStatus

job_script = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "infra" / "job.py")))
OURS = "2026-11-30 04:45:33,835\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
BEGIN = f"{OURS}Running entrypoint for job raysubmit_31: python pipelines/full.py\n"
"""The first two lines of a job's log, as Ray writes them."""


class Client:
    """Stands for Ray's `JobSubmissionClient`: a job whose log comes in pieces, and its end."""

    def __init__(self, pieces: list[str], status: JobStatus, message: str = "") -> None:
        self.pieces, self.info = pieces, SimpleNamespace(status=status, message=message)
        self.submitted: dict[str, Any] = {}

    def submit_job(self, **job: Any) -> None:
        self.submitted = job

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in self.pieces:
            yield piece

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info


def test_a_job_has_one_line_of_ours_and_its_own_log(capsys: Any) -> None:
    client = Client([BEGIN + "plan\n", "step 1", "/3\n"], JobStatus.SUCCEEDED)
    assert job_script.submit(client, "raysubmit_31", ["python", "a b.py"], {"working_dir": "."}) == 0
    assert client.submitted == {
        "entrypoint": "python 'a b.py'", "submission_id": "raysubmit_31", "runtime_env": {"working_dir": "."},
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "job raysubmit_31 is submitted (Ctrl-C lets it save and end)",
        "plan",
        "step 1/3",
        "job raysubmit_31: SUCCEEDED",
    ]


@pytest.mark.parametrize(
    ("status", "message", "shown", "code"),
    [
        (JobStatus.FAILED, "the command failed with exit code 2, last available logs (truncated to):\nx",
         "job r: FAILED (the command failed with exit code 2)", 1),
        (JobStatus.FAILED, "runtime_env setup failed: no room", "job r: FAILED (runtime_env setup failed: no room)", 1),
        (JobStatus.STOPPED, "", "job r: STOPPED", 130),
    ],
)  # fmt: skip
def test_another_end_is_said_with_its_reason(
    status: JobStatus, message: str, shown: str, code: int, capsys: Any
) -> None:
    assert job_script.submit(Client(["x\n"], status, message), "r", ["true"], {}) == code
    assert capsys.readouterr().out.splitlines()[1:] == ["x", shown]


@pytest.mark.parametrize(
    "kept",
    [
        "INFO: Runtime env is setting up.\n",
        OURS.replace("INFO", "ERROR"),
        OURS.rstrip("\n") + " It failed.\n",
        "said: Running entrypoint for job raysubmit_31: python\n",
        "half a line, then nothing",
        "\n",
    ],
)
def test_all_other_lines_are_shown_and_after_the_head_of_the_log_all(kept: str) -> None:
    assert job_script.LogFilter()(BEGIN + kept + BEGIN) == kept + BEGIN


def test_the_end_of_a_line_that_came_in_pieces_is_no_line_of_rays() -> None:
    shown = job_script.LogFilter()
    assert [shown("step: "), shown(OURS), shown(OURS)] == ["step: ", OURS, ""]


class Talkative(Client):
    """Its log breaks off, and it ends after some more questions."""

    def __init__(self, questions: int) -> None:
        super().__init__(["half a line"], JobStatus.RUNNING)
        self.questions = questions

    def get_job_info(self, job: str) -> SimpleNamespace:
        self.questions -= 1
        return SimpleNamespace(status=JobStatus.RUNNING if self.questions else JobStatus.SUCCEEDED, message="")


def test_a_log_that_breaks_off_is_no_end(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(job_script.wait_for_end.__globals__, "POLL_S", 0.0)
    assert job_script.submit(Talkative(3), "r", ["true"], {}) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "half a line", "the log of job r broke off; the job goes on, and its end is waited for", "job r: SUCCEEDED",
    ]  # fmt: skip


class Lingering(Client):
    """Its stream stays open after its end, as Ray's does, and has not had the log's last part."""

    def __init__(self, answers: list[str | Exception]) -> None:
        super().__init__([BEGIN + "step 1\nst"], JobStatus.SUCCEEDED)
        self.answers = iter(answers)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield self.pieces[0]
        await asyncio.sleep(60.0)

    def get_job_logs(self, job: str) -> str:
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_end_of_a_job_is_seen_before_its_stream_ends(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(job_script.wait_for_end.__globals__, "POLL_S", 0.01)
    client = Lingering([RuntimeError("busy"), requests.ConnectionError(), BEGIN + "step 1\nstep 2\ndone"])
    assert job_script.submit(client, "r", ["true"], {}) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["step 1", "step 2", "done", "job r: SUCCEEDED"]


def test_rays_warnings_are_shown_and_its_chatter_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ray, error = logging.getLogger("ray"), io.StringIO()
    assert ray.handlers, "Ray's own lines go to handlers of its own"
    monkeypatch.setattr(ray, "handlers", [logging.StreamHandler(error)])
    job_script.keep_ray_quiet()
    logger = logging.getLogger("ray.dashboard.modules.dashboard_sdk")
    logger.info("Uploading package")
    logger.warning("the package is large")
    logging.getLogger("ray._private.runtime_env.working_dir").warning(job_script.EXCLUDES, ".git")
    assert error.getvalue() == "the package is large\n"


def test_ray_still_writes_the_lines_that_are_left_out() -> None:
    """Else they are shown again, which does no harm, and the patterns are of no use."""
    assert '"Directory %r is now ignored by default when packaging the working "' in inspect.getsource(working_dir)
    assert 'info("Runtime env is setting up.")' in inspect.getsource(job_manager)
    assert 'f"Running entrypoint for job {self._job_id}: {self._entrypoint}\\n"' in inspect.getsource(job_supervisor)
    assert job_script.LOGS_AGAIN in inspect.getsource(job_supervisor)
