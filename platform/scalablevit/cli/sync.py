"""Send to MLflow what outages and killed jobs left in the runs' outboxes (records of metrics, models and artifacts)."""

import argparse
from pathlib import Path

from scalablevit.cli.arguments import add_root
from scalablevit.cli.documents import Sync, SyncedRun
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.run_files import NOTIFICATIONS, RECORDS, RUNS
from scalablevit.tracking.notifications import notification_syncs
from scalablevit.tracking.outbox import open_runs, outbox_of, read_lines
from scalablevit.tracking.sync import OrderedSync, OutboxSync, Pending, refused_records
from scalablevit.tracking.sync_progress import load_progress

EPILOG = """\
Each run's records are in <root>/runs/<run>/outbox and stay there. Without --uri they go where their job sent them, or
`sync` last (where neither is known: sqlite:///<root>/mlflow.db). Give user and password in --uri, or in
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Runs whose process died are marked KILLED, 60 s after
their last record. Sending twice is safe: MLflow stores each record once. Records that the server rejects, or whose
artifact is missing, are listed with run, kind and reason, and sent again by --again.

Notifications that wait (<root>/notifications) are sent, too, unless runs are named; --again leaves those alone.

Exit codes: 0 nothing is left; 1 something is; 2 something that you can fix; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="names of runs, as `runs list` prints them (default: all)"
    )
    add_root(parser)
    parser.add_argument("--uri", help="MLflow's tracking URI (default: see below)")
    parser.add_argument(
        "--again", action="store_true", help="send all records from the first on, also the refused ones"
    )
    parser.add_argument("--dry-run", action="store_true", help="print how much each run has left, send nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Send every outbox asked for, and print the outcome; see `add_arguments`.

    Raises:
        UserError: there is no such run, or MLflow's address is none.
    """
    root = platform_root(options.root, make=False)
    with stdout_to_stderr(options.json):
        syncs = {folder: _sync_of(root, folder, options.uri) for folder in _outboxes(root, options.runs)}
        if not syncs:
            print(f"no run below {root / RUNS} has records to send: is --root right?", flush=True)
        synced = [_sync(folder, sync, options) for folder, sync in syncs.items()]
        notifications = {} if options.runs else notification_syncs(root)
        synced += [_sync(folder, sync, options) for folder, sync in notifications.items()]
    if options.json:
        print_document(Sync(root=str(root), sent=not options.dry_run, runs=tuple(synced)))
    return 1 if any(synced_run.left for synced_run in synced) and not options.dry_run else 0


def _sync(folder: Path, sync: OrderedSync, options: argparse.Namespace) -> SyncedRun:
    """Send an outbox, or in a dry run count its records, and print the outcome."""
    of_run = isinstance(sync, OutboxSync)
    run = folder.parent.name if of_run else f"{NOTIFICATIONS}/{folder.name}"
    if options.dry_run:
        pending, unended = sync.pending(), None
        print(f"{run}: {pending.records} records would be sent", flush=True)
    else:
        pending, unended = sync.send_left(from_start=options.again and of_run), len(open_runs(folder))
        print(f"{run}: {_describe(pending, unended)}", flush=True)
    refused = refused_records(folder)
    for reason in () if options.dry_run else refused:
        print(f"  refused: {reason}", flush=True)
    return SyncedRun(
        run=run, left=pending.records, refused=tuple(refused), error=pending.error or "", without_end=unended
    )


def _outboxes(root: Path, names: list[str]) -> list[Path]:
    """Return the folders of the runs' outboxes, oldest first, since MLflow needs a parent run before its children.

    Raises:
        UserError: a run has no outbox.
    """
    outboxes = {run.name: outbox_of(run) for run in (root / RUNS).glob("*") if (outbox_of(run) / RECORDS).is_file()}
    unknown = [name for name in names if name not in outboxes]
    if unknown:
        raise UserError(
            f"no outbox of run {', '.join(unknown)}",
            where=str(root / RUNS),
            fix=f"name one of: {', '.join(sorted(outboxes)) or '(none: is --root right?)'}",
        )
    return sorted((outboxes[name] for name in names or outboxes), key=_start_ms)


def _start_ms(folder: Path) -> int:
    return next((line.record.time_ms for line in read_lines(folder) if line.record is not None), 0)


def _sync_of(root: Path, folder: Path, uri: str | None) -> OutboxSync:
    last = load_progress(folder)
    return OutboxSync(folder, uri or (last.uri if last is not None else tracking_uri(None, root)))


def _describe(pending: Pending, unended: int) -> str:
    parts = [f"{pending.records} records left ({pending.error})" if pending.records else "everything sent"]
    if unended and pending.error is None:
        runs = "1 run" if unended == 1 else f"{unended} runs"
        parts.append(f"{runs} without an end: if its job is dead, run this again in a minute")
    if pending.refused:
        parts.append(f"{pending.refused} refused, see refused.jsonl")
    return "; ".join(parts)
