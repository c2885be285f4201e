"""What outages and killed jobs left in the runs' outboxes, sent to MLflow from the command line."""

import argparse
from pathlib import Path

from scalablevit.cli.arguments import add_root
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.run_files import RECORDS, RUNS
from scalablevit.tracking.outbox import open_runs, outbox_of, read_lines
from scalablevit.tracking.sync import OutboxSync, Pending, load_progress, refused_records

EPILOG = """\
Each run's records are in <root>/runs/<run>/outbox and stay there. Without --uri they go where their job sent them, or
`sync` last (where neither is known: sqlite:///<root>/mlflow.db). Give user and password in --uri, or in
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Runs whose process died are marked KILLED, 60 s after
their last record. Sending twice is safe: MLflow stores each record once. Records that the server rejects, or whose
artifact is missing, are listed with run, kind and reason, and sent again by --again.

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


def run(options: argparse.Namespace) -> int:
    """Send every outbox asked for, and say what became of it; see `add_arguments`.

    Raises:
        UserError: there is no such run, or MLflow's address is none.
    """
    root = platform_root(options.root, make=False)
    syncs = {folder: _sync_of(root, folder, options.uri) for folder in _outboxes(root, options.runs)}
    if not syncs:
        print(f"no run below {root / RUNS} has records to send: is --root right?", flush=True)
    left = 0
    for folder, sync in syncs.items():
        if options.dry_run:
            print(f"{folder.parent.name}: {sync.pending().records} records would be sent", flush=True)
            continue
        pending = sync.send_left(from_start=options.again)
        print(f"{folder.parent.name}: {_describe(pending, len(open_runs(folder)))}", flush=True)
        for refused in refused_records(folder):
            print(f"  refused: {refused}", flush=True)
        left += pending.records
    return 1 if left else 0


def _outboxes(root: Path, names: list[str]) -> list[Path]:
    """Folders of the runs' outboxes, oldest first: a parent run starts before its children, which need it there."""
    found = {run.name: outbox_of(run) for run in (root / RUNS).glob("*") if (outbox_of(run) / RECORDS).is_file()}
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(
            f"no outbox of run {', '.join(unknown)}",
            where=str(root / RUNS),
            fix=f"name one of: {', '.join(sorted(found)) or '(none: is --root right?)'}",
        )
    return sorted((found[name] for name in names or found), key=_start_ms)


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
