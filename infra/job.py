"""Submit a command as a Ray job and show its log to the job's end: `ray job submit` without Ray's own twenty lines.

`head.py submit` runs it in a process and a session of its own. RAY_API_SERVER_ADDRESS leads to the head.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import requests
import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

KNOWN = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO job_manager\.py:\d+ -- Runtime env is setting up\."
    r"|Running entrypoint for job raysubmit_\w+: .*"
)
"""Lines that Ray itself writes at the beginning of a job's log; all others are shown."""
KNOWN_LINES = 2
"""Number of these lines."""
EXCLUDES = "Directory %r is now ignored by default when packaging the working directory."
"""Beginning of Ray's warning that .git and .venv are not uploaded, which is intended here."""
POLL_S = 0.5
"""Seconds between two checks of a job."""
LOGS_AGAIN = "last available logs "
"""Text in Ray's reason for a failed command; after it Ray repeats the log, which has been shown."""


class LogFilter:
    """Removes Ray's own lines from a log that comes in pieces."""

    def __init__(self) -> None:
        self._begins_line = True
        self._expected = KNOWN_LINES

    @property
    def within_line(self) -> bool:
        """Return whether the last line has not ended."""
        return not self._begins_line

    def __call__(self, piece: str) -> str:
        """Return the part to show of the next piece of a log."""
        kept = []
        for line in re.findall(r"[^\n]*\n|[^\n]+", piece):
            is_own_line = self._expected and self._begins_line and line.endswith("\n") and KNOWN.fullmatch(line[:-1])
            if is_own_line:
                self._expected -= 1
            else:
                kept.append(line)
            self._begins_line = line.endswith("\n")
        return "".join(kept)


def keep_ray_quiet() -> None:
    """Show only Ray's warnings and errors, without the warning `EXCLUDES`."""
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not str(record.msg).startswith(EXCLUDES))


async def show_log(client: Any, job: str) -> None:
    """Print a job's log as it is written, until the job has ended or the log breaks off.

    Ray's own stream ends 2 to 4 seconds after the job, so the job is asked for, too, and the rest of its log is read.
    """
    log_filter, received = LogFilter(), 0

    def show(piece: str) -> None:
        nonlocal received
        received += len(piece)
        print(log_filter(piece), end="", flush=True)

    async def follow() -> None:
        async for piece in client.tail_job_logs(job):
            show(piece)

    stream = asyncio.create_task(follow())
    while not (await asyncio.wait({stream}, timeout=POLL_S))[0]:
        log = await asyncio.to_thread(read_ended_log, client, job)
        if log is not None and not stream.done():
            stream.cancel()
            show(log[received:])
            break
    with contextlib.suppress(asyncio.CancelledError):
        await stream
    if log_filter.within_line:
        print(flush=True)


def read_ended_log(client: Any, job: str) -> str | None:
    """Return the whole log of a job that has ended; None: it has not, or Ray does not say so at the moment."""
    try:
        return str(client.get_job_logs(job)) if client.get_job_info(job).status.is_terminal() else None
    except (RuntimeError, OSError):  # of requests, too; whether the log breaks off is seen in its stream
        return None


def wait_for_end(client: Any, job: str) -> Any:
    """Wait for a job's end, and return Ray's information on it; a log may break off earlier, with Ray's agent."""
    info = client.get_job_info(job)
    if not info.status.is_terminal():
        print(f"the log of job {job} broke off; the job goes on, and its end is waited for", flush=True)
    while not info.status.is_terminal():
        time.sleep(POLL_S)
        info = client.get_job_info(job)
    return info


def submit(client: Any, job: str, entrypoint: list[str], runtime_env: dict[str, Any]) -> int:
    """Submit a job, show its log and print how it ended.

    Args:
        client: Ray's `JobSubmissionClient`.
        job: the job's submission id.
        entrypoint: the command.
        runtime_env: the job's runtime environment; its working directory is uploaded.

    Returns:
        0 when the job succeeded, 130 when it was stopped, else 1.
    """
    client.submit_job(entrypoint=shlex.join(entrypoint), submission_id=job, runtime_env=runtime_env)
    print(f"job {job} is submitted (Ctrl-C lets it save and end)", flush=True)
    asyncio.run(show_log(client, job))
    info = wait_for_end(client, job)
    reason = (info.message or "").partition(LOGS_AGAIN)[0].rstrip(", ") if info.status != JobStatus.SUCCEEDED else ""
    print(f"job {job}: {info.status.value}" + f" ({reason})" * bool(reason), flush=True)
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 130}.get(info.status, 1)


def main() -> int:
    """Run the command line, and return the exit code: that of `submit`, or 1 if it cannot be submitted or followed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="its submission id")
    parser.add_argument("--runtime-env", type=Path, required=True, metavar="FILE", help="of the job, as YAML")
    parser.add_argument("entrypoint", nargs="+", help="the job's command, after --")
    options = parser.parse_args()
    keep_ray_quiet()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a log may hold any character
    runtime_env = yaml.safe_load(options.runtime_env.read_text(encoding="utf-8"))
    try:
        return submit(JobSubmissionClient(), options.job, options.entrypoint, runtime_env)
    except BrokenPipeError:  # the reader of the log has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123  # else Python complains at its end
        print(f"job {options.job} goes on; its log is not read any more", file=sys.stderr)
        return 1
    except (RuntimeError, OSError, ValueError, RayError, aiohttp.ClientError, requests.RequestException) as error:
        print(f"error: job {options.job}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
