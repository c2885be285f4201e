"""Submit a command as a Ray job and show its log to the job's end: `ray job submit` without Ray's own twenty lines.

`head.py submit` runs it in a process and a session of its own. RAY_API_SERVER_ADDRESS leads to the head.
"""

import argparse
import asyncio
import logging
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

KNOWN = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\tINFO job_manager\.py:\d+ -- Runtime env is setting up\."
    r"|Running entrypoint for job raysubmit_\w+: .*"
)
"""Lines that Ray itself writes into a job's log; all others are shown."""
EXCLUDES = "Directory %r is now ignored by default when packaging the working directory."
"""Ray's warning that .git and .venv do not travel with the job, for which nobody here asks."""
LOGS_AGAIN = "last available logs "
"""In Ray's reason for a failed command: from here on it repeats the log, which has been shown."""


class LogFilter:
    """Takes Ray's own lines out of a log that comes in pieces."""

    def __init__(self) -> None:
        self._begins_line = True

    def __call__(self, piece: str) -> str:
        """Return what is to be shown of the next piece of a log."""
        kept = []
        for line in re.findall(r"[^\n]*\n|[^\n]+", piece):
            known = self._begins_line and line.endswith("\n") and KNOWN.fullmatch(line[:-1])
            if not known:
                kept.append(line)
            self._begins_line = line.endswith("\n")
        return "".join(kept)


def keep_ray_quiet() -> None:
    """Show Ray's warnings and errors only, and of the warnings not the one that is known."""
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)
        handler.addFilter(lambda record: not str(record.msg).startswith(EXCLUDES))


async def show_log(client: Any, job: str) -> None:
    """Print a job's log as it is written, until the job has ended."""
    shown = LogFilter()
    async for piece in client.tail_job_logs(job):
        print(shown(piece), end="", flush=True)


def submit(client: Any, job: str, entrypoint: list[str], runtime_env: dict[str, Any]) -> int:
    """Submit a job, show its log and say how it ended.

    Args:
        client: Ray's `JobSubmissionClient`.
        job: its submission id.
        entrypoint: the command.
        runtime_env: of the job; the working directory in it is uploaded.

    Returns:
        1 when the job failed, else 0.
    """
    client.submit_job(entrypoint=shlex.join(entrypoint), submission_id=job, runtime_env=runtime_env)
    print(f"job {job} is submitted; its log: ray job logs {job} --follow; to stop it: ray job stop {job}", flush=True)
    asyncio.run(show_log(client, job))
    info = client.get_job_info(job)
    reason = (info.message or "").partition(LOGS_AGAIN)[0].rstrip(", ") if info.status != JobStatus.SUCCEEDED else ""
    print(f"job {job}: {info.status.value}" + f" ({reason})" * bool(reason), flush=True)
    return 1 if info.status == JobStatus.FAILED else 0


def main() -> int:
    """Return the exit code: 0, or 1 when the job failed or was not submitted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="its submission id")
    parser.add_argument("--runtime-env", type=Path, required=True, metavar="FILE", help="of the job, as YAML")
    parser.add_argument("entrypoint", nargs="+", help="the job's command, after --")
    options = parser.parse_args()
    keep_ray_quiet()
    runtime_env = yaml.safe_load(options.runtime_env.read_text(encoding="utf-8"))
    try:
        return submit(JobSubmissionClient(), options.job, options.entrypoint, runtime_env)
    except (RuntimeError, ConnectionError, ValueError) as error:
        print(f"error: job {options.job}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
