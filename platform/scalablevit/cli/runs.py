"""List, show and stop the runs below a root, by their `status.json` and leases."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import add_root, add_verb
from scalablevit.cli.json_output import add_json, print_document
from scalablevit.config.commands import command_line
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root
from scalablevit.machine import is_this_machine
from scalablevit.run_files import RUNS, STATUS
from scalablevit.runs.console import format_duration
from scalablevit.runs.lease import find_owned, is_owner_alive, known_owners, read_claim
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.status import ENDED, Status, read_status
from scalablevit.text import format_table

if TYPE_CHECKING:
    from scalablevit.cli.documents import RunFacts

STOP_S = 150.0
"""Longest wait, in seconds, for a run to end: its stages first report their end to MLflow."""
POLL_S = 0.5
"""Seconds between two looks at a run that is to end."""
HEAD = "head.json"
"""File in the root in which infra/head.py records its Ray head."""
RAY_S = 60
"""Longest wait, in seconds, for Ray to take the request to stop a job."""

EPILOG = """\
A run is the folder below <root>/runs of a stage, a search or a job; a job is all that one command trains of a recipe.

States: started (being prepared), running, finished, failed, killed (interrupted), lost (the process is gone without
having written its end), unreadable (the run's status.json is damaged). The command that started a run continues it,
unless it is finished. `running?` means that the process is on another machine: list waits up to 30 s for a sign of
life in the run's folder and then prints the final state; a run that was found lost is not waited for again.

stop stops the whole job that the run belongs to, as Ctrl-C does; a job that was submitted to a cluster by `ray job
stop`, on the cluster that RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, else on the local Ray head whose address is in
<root>/head.json.

Exit codes: 0 done; 1 the run had not ended within 150 s; 2 no such run, or one that cannot be stopped from here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    shared = argparse.ArgumentParser(add_help=False)
    add_root(shared)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_json(add_verb(verbs, "list", "print a table of all runs", [shared]))
    show = add_verb(verbs, "show", "print one run in detail", [shared])
    show.add_argument("run", metavar="RUN", help="name of a run, as `runs list` prints it")
    add_json(show)
    stop = add_verb(verbs, "stop", "stop the job that a run belongs to, as Ctrl-C does", [shared])
    stop.add_argument("run", metavar="RUN", help="name of a run, as `runs list` prints it")
    stop.add_argument("--dry-run", action="store_true", help="say what would be stopped, stop nothing")


def run(options: argparse.Namespace) -> int:
    """List, show or stop runs; see `add_arguments`.

    Raises:
        UserError: there is no such run, its status is damaged, or it cannot be stopped from here.
    """
    root = platform_root(options.root, make=False)
    if options.verb == "list":
        return _list_json(root) if options.json else _list(root)
    known = {path.parent.name for path in (root / RUNS).glob(f"*/{STATUS}")}
    listed = _read_run(root / RUNS / options.run) if options.run in known else None
    if listed is None:
        raise UserError(f"no run {options.run!r}", where=str(root / RUNS),
                        fix=f"name one of: {', '.join(sorted(known)) or '(none: is --root right?)'}")  # fmt: skip
    (listed,) = _check_leases([listed])
    if options.verb == "show" and options.json:
        from scalablevit.cli.documents import RunDetails

        print_document(RunDetails(run=_facts(listed), files=_files(listed)))
        return 0
    if options.verb == "show":
        print(format_details(listed))
        return 0
    return stop(listed, root, dry_run=options.dry_run)


def _list(root: Path) -> int:
    """Print all runs at once, then the state of those whose lease must be watched for it."""
    listed, unreadable = list_runs(root)
    print(format_runs(listed, unreadable, root), flush=True)
    unclear = [run for run in listed if run.unclear]
    if unclear:
        print("\n".join(f"{run.status.run}: {run.state}" for run in _check_leases(unclear)))
    return 0


def _list_json(root: Path) -> int:
    """Print all runs as one document, after watching the leases that must be watched."""
    from scalablevit.cli.documents import RunList

    listed, unreadable = list_runs(root)
    settled = {run.status.run: run for run in _check_leases([run for run in listed if run.unclear])}
    runs = tuple(_facts(settled.get(run.status.run, run)) for run in listed)
    print_document(RunList(root=str(root), runs=runs, unreadable={name: str(why) for name, why in unreadable.items()}))
    return 0


@dataclass(frozen=True)
class ListedRun:
    """A run and its state."""

    store: RunStore
    """Where its lease is."""
    status: Status
    lost: bool = False
    """Whether its process ended without recording its end."""
    unclear: bool = False
    """Whether its lease must be watched to know if its process is alive."""

    @property
    def state(self) -> str:
        """Return the state of `status.json`, or `lost`; with `?` while it is unclear."""
        return "lost" if self.lost else self.status.state + "?" * self.unclear


def list_runs(root: Path) -> tuple[list[ListedRun], dict[str, UserError]]:
    """Return the runs below the root that have a status, the latest first, and errors of damaged ones by name.

    It does not wait: it may stay unclear whether a process on another machine is alive.

    Args:
        root: the platform's root.
    """
    listed: list[ListedRun] = []
    unreadable: dict[str, UserError] = {}
    for path in sorted((root / RUNS).glob(f"*/{STATUS}")):
        try:
            listed += filter(None, [_read_run(path.parent)])
        except UserError as error:
            unreadable[path.parent.name] = error
    alive = known_owners([run.store for run in listed if run.status.state not in ENDED])
    listed = [
        replace(run, unclear=True)
        if alive.get(run.store.name, True) is None
        else _read_again(run, alive=alive.get(run.store.name) is True)
        for run in listed
    ]
    return sorted(listed, key=lambda run: run.status.started, reverse=True), unreadable


def _read_run(folder: Path) -> ListedRun | None:
    """Return the run as its status file has it; None without one.

    Raises:
        UserError: the file is damaged.
    """
    status = read_status(folder)
    return None if status is None else ListedRun(RunStore(folder.name, status.folder, folder), status)


def _check_leases(listed: Sequence[ListedRun]) -> list[ListedRun]:
    """Return the runs after watching their leases, which shows whether their processes are alive."""
    owners = find_owned([run.store for run in listed if run.status.state not in ENDED])
    return [_read_again(run, alive=run.store.name in owners) for run in listed]


def _read_again(listed: ListedRun, *, alive: bool) -> ListedRun:
    """Return the run with its status read again, since it may have ended or started again after the first read."""
    status = read_status(listed.store.local) or listed.status
    same = (status.started, status.state) == (listed.status.started, listed.status.state)
    return replace(listed, status=status, lost=same and not alive and status.state not in ENDED, unclear=False)


def format_runs(runs: Sequence[ListedRun], unreadable: Mapping[str, UserError], root: Path) -> str:
    """Return a table of runs, and below it what is wrong with those whose status cannot be read."""
    others = sum(not (path / STATUS).exists() for path in (root / RUNS).glob("*/") if path.is_dir())
    left_out = [f"folders without a status.json, left out: {others}"] if others else []
    if not runs and not unreadable:
        return "\n".join([f"no runs in {root / RUNS}", *left_out])
    rows = [("run", "state", "at", "best", "age")]
    for run in runs:
        status = run.status
        rows.append((status.run, run.state, f"{status.step}/{status.total} {status.unit}", _best(status),
                     format_duration(time.time() - status.started)))  # fmt: skip
    rows += [(name, "unreadable", "-", "-", "-") for name in unreadable]
    return "\n".join([format_table(rows, rule=False), *left_out, *map(str, unreadable.values())])


def _facts(listed: ListedRun) -> "RunFacts":
    from scalablevit.cli.documents import RunFacts

    return RunFacts.model_validate({**asdict(listed.status), "state": listed.state})


def _files(listed: ListedRun) -> tuple[str, ...]:
    return tuple(sorted(path.name + "/" * path.is_dir() for path in listed.store.local.iterdir()))


def format_details(listed: ListedRun) -> str:
    """Return the facts about one run, a line for each."""
    status = listed.status
    why = "its process ended without a word; the command that started it continues it" if listed.lost else status.why
    facts = {
        "run": status.run,
        "state": listed.state,
        "why": why,
        "stage": status.stage,
        "at": f"{status.step} of {status.total} {status.unit}",
        "best": _best(status),
        "started": _moment(status.started),
        "updated": _moment(status.updated),
        "ended": "" if status.ended is None else _moment(status.ended),
        "process": f"{status.process} on {status.host}",
        "job": status.job,
        "folder": status.folder,
        "tracking": status.tracking,
        "files": ", ".join(_files(listed)),
    }
    return "\n".join(f"{name:<10}{fact}" for name, fact in facts.items() if fact)


def stop(listed: ListedRun, root: Path, *, dry_run: bool = False) -> int:
    """End a run as Ctrl-C does, and wait for it.

    Args:
        listed: the run.
        root: folder in which a local head may have its `head.json`.
        dry_run: print what would be stopped, and stop nothing.

    Returns:
        The exit code: 1 if it had not ended after `STOP_S`, else 0.

    Raises:
        UserError: it has ended already, runs on another machine, or its cluster cannot be reached.
    """
    status = listed.status
    if listed.state in (*ENDED, "lost"):
        raise UserError(f"run {status.run} has ended already: {listed.state}", where=status.folder,
                        fix="nothing is left to stop")  # fmt: skip
    how = f"`ray job stop {status.job}`" if status.job else f"an interrupt to process {status.process}"
    print(f"{how} ends the job that run {status.run} belongs to", flush=True)
    if not status.job:
        _refuse_elsewhere(listed)
    if dry_run:
        print("dry run: nothing was stopped")
        return 0
    if status.job:
        _stop_job(status, _environment(os.environ, root), root)
    else:
        _interrupt(listed)
    end = time.monotonic() + STOP_S
    while time.monotonic() < end:
        time.sleep(POLL_S)
        claim = read_claim(listed.store)  # before the status, which a run writes before it releases its lease
        now = read_status(listed.store.local) or status
        if claim is None or is_owner_alive(claim) is False:
            outcome = now.state if now.state in ENDED else "ended without a word"
            more = "" if outcome == "finished" else "; the command that started it continues it"
            print(f"{outcome} at {now.step} of {now.total} {now.unit}{more}")
            return 0
    print(f"run {status.run} has not ended after {STOP_S:.0f} s; `show` says what became of it", file=sys.stderr)
    return 1


def _refuse_elsewhere(listed: ListedRun) -> None:
    """Refuse a run whose process this machine cannot send a signal to.

    Raises:
        UserError: names its process and host.
    """
    claim = read_claim(listed.store)
    if claim is None or is_owner_alive(claim) is None:
        status = listed.status
        raise UserError(
            f"run {status.run} belongs to process {status.process} on {status.host}, which cannot be reached from here",
            where=status.folder,
            fix=f"there: {command_line('runs')} stop {shlex.quote(status.run)}, with --root and its folder",
        )


def _interrupt(listed: ListedRun) -> None:
    """Send SIGINT to the process that owns the lease, which may be younger than the status.

    Raises:
        UserError: the process belongs to another user.
    """
    claim = read_claim(listed.store)
    if claim is None or not is_owner_alive(claim):
        return
    try:
        os.kill(claim["process"], signal.SIGINT)
    except ProcessLookupError:
        return
    except PermissionError:
        raise UserError(f"process {claim['process']} belongs to another user", where=listed.status.folder,
                        fix="stop it as that user") from None  # fmt: skip


def _environment(given: Mapping[str, str], root: Path) -> dict[str, str]:
    """Return the variables for Ray's command: those given if they name a cluster, else the head's in the root.

    Raises:
        UserError: the head's record is damaged, or of a head on another machine.
    """
    if given.get("RAY_API_SERVER_ADDRESS") or given.get("RAY_ADDRESS"):
        return dict(given)
    try:
        head = json.loads((root / HEAD).read_text(encoding="utf-8"))
        machine = str(head.get("machine", ""))  # records of earlier releases lack it
        if machine and not is_this_machine(machine):  # its address is 127.0.0.1 there
            raise UserError(
                f"the head that runs the job was started on {machine.partition(' ')[0]}",
                where=str(root / HEAD),
                fix="give the same command there; if that machine was renamed or replaced, "
                "export RAY_API_SERVER_ADDRESS=http://<head>:8265",
            )
        # Ray would prefer a token in the environment to the file
        kept = {name: value for name, value in given.items() if name != "RAY_AUTH_TOKEN"}
        return kept | {
            "RAY_API_SERVER_ADDRESS": str(head["dashboard"]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(head["token_file"]),
            "NO_PROXY": ",".join(filter(None, [given.get("NO_PROXY", ""), "127.0.0.1"])),
        }
    except FileNotFoundError:
        return dict(given)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"not readable as the record of a head: {error!r}",
            where=str(root / HEAD),
            fix="export RAY_API_SERVER_ADDRESS=http://<head>:8265, or remove the file",
        ) from None


def _stop_job(status: Status, environment: Mapping[str, str], root: Path) -> None:
    """Ask the cluster to stop a job by Ray's own command, which knows about addresses and tokens.

    Raises:
        UserError: no cluster is named, or it does not stop the job.
    """
    if not environment.get("RAY_API_SERVER_ADDRESS") and not environment.get("RAY_ADDRESS"):
        raise UserError(
            f"run {status.run} was submitted as job {status.job}, and no cluster is named to stop it: {root / HEAD} "
            "is not there",
            where="RAY_API_SERVER_ADDRESS",
            fix="export RAY_API_SERVER_ADDRESS=http://<head>:8265; for a head of infra/head.py with another root: "
            'eval "$(python infra/head.py env --root <its root>)"',
        )
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "stop", "--no-wait", status.job]
    try:
        done = subprocess.run(
            command, env=dict(environment), timeout=RAY_S, capture_output=True, text=True, check=False
        )
        output = (done.stderr or done.stdout).strip().splitlines()
        errors = output or [f"exit code {done.returncode}"] if done.returncode else []
    except subprocess.TimeoutExpired:
        errors = [f"no response within {RAY_S} s"]
    except OSError as error:  # Ray's command is not in this environment
        errors = [f"{ray}: {error.strerror}"]
    if errors:
        cluster = environment.get("RAY_API_SERVER_ADDRESS") or environment.get("RAY_ADDRESS")
        raise UserError(f"job {status.job} was not stopped: {errors[-1]}", where=" ".join(command[1:]),
                        fix=f"is {cluster} up, and the cluster that it was submitted to?")  # fmt: skip


def _best(status: Status) -> str:
    best = status.best
    return "-" if best is None else f"{best.metric.removeprefix('val/')} {best.value:.4f} at step {best.step}"


def _moment(seconds: float) -> str:
    ago = format_duration(max(0.0, time.time() - seconds))
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))} ({ago} ago)"
