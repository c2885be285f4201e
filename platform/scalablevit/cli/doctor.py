"""Check what a training needs of machines, storage and MLflow, by the functions of a training's own gates."""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import add_root
from scalablevit.cli.documents import Diagnosis, FoundFact
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.text import format_table

if TYPE_CHECKING:
    from scalablevit.pipeline.node_checks import Finding

EPILOG = """\
Looks at the Ray cluster that RAY_ADDRESS names; without it, or with --address none, at this machine alone, and no Ray
is started. Nothing is trained; a small file is written to run storage and deleted. A training checks the same of its
nodes and storage before it starts, and prints the same sentences.

Exit codes: 0 nothing stops a training (there may be warnings); 2 something does, which you can fix; 130 interrupted."""
ENTRY = Path("pipelines", "full.py")
"""In folders from which jobs are submitted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_root(parser)
    parser.add_argument("--uri", help="MLflow's tracking URI (default: sqlite:///<root>/mlflow.db)")
    parser.add_argument("--storage", help="run storage, as a recipe's cluster.storage (default: <root>/runs)")
    parser.add_argument("--address", choices=("auto", "none"), default="auto",
                        help="auto: RAY_ADDRESS's cluster; none: this machine alone (default: auto)")  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check everything, and print a line for each finding; see `add_arguments`.

    Raises:
        UserError: the root is of no use.
    """
    with stdout_to_stderr(options.json):
        root = platform_root(options.root)
        has_cluster = options.address == "auto" and bool(os.environ.get("RAY_ADDRESS"))
        not_checked = []
        if not has_cluster:
            why = "RAY_ADDRESS is not set" if options.address == "auto" else "--address none"
            not_checked.append(f"other nodes, their clocks, addresses, ports and shared folders, and the token: {why}")
        if not ENTRY.is_file():
            not_checked.append(f"the upload of a job: {ENTRY} is not in the current folder")
        findings = [*_find_here(root, options.uri or tracking_uri(None, root)),
                    *_find_on_nodes(root, options.storage, has_cluster=has_cluster)]  # fmt: skip
        _print(findings, not_checked)
    if options.json:
        print_document(Diagnosis(root=str(root), findings=tuple(map(_fact, findings)), not_checked=tuple(not_checked)))
    return 2 if any(finding.level == "stops" for finding in findings) else 0


def _find_here(root: Path, uri: str) -> "Iterator[Finding]":
    """Yield what belongs to no node: the root's disk, MLflow, the upload."""
    from scalablevit.pipeline.node_checks import Finding, find_disk, find_upload
    from scalablevit.tracking.connection import check_response, check_uri, without_credentials
    from scalablevit.training.ray_internals import upload_size

    disk = shutil.disk_usage(root)
    yield find_disk("--root", str(root), disk.free, disk.total)
    shown, refused = without_credentials(uri), True
    try:
        check_uri(uri)
        refused = False
        yield Finding("tracking", shown, check_response(uri))
    except UserError as error:
        yield Finding("tracking", shown, "", error, stops=refused)  # a training does not wait for a server
    if ENTRY.is_file():
        yield find_upload(str(Path.cwd()), *upload_size(Path.cwd()))


def _find_on_nodes(root: Path, storage: str | None, *, has_cluster: bool) -> "Iterator[Finding]":
    """Yield what belongs to the nodes of the cluster, or to this machine."""
    import ray

    from scalablevit.pipeline import cluster
    from scalablevit.pipeline.node_checks import Finding, find_token
    from scalablevit.training.ray_internals import Node, alive_nodes

    location = cluster.storage_location(storage, root)
    if not has_cluster:
        yield from cluster.find_on_nodes([Node("", cluster.local_resources(), "this machine")], [location])
        return
    address = mask_credentials(os.environ["RAY_ADDRESS"])
    try:
        cluster.start_ray()
        nodes = alive_nodes()
        yield Finding("cluster", address, f"{len(nodes)} nodes")
        yield find_token(ray.get_runtime_context().gcs_address, os.environ.get("RAY_AUTH_MODE", ""))
        found = cluster.find_on_nodes(nodes, [location])
        yield from found
        if "://" not in location and not any(finding.what == "storage" and finding.problem for finding in found):
            probe = cluster.make_probe(location)
            try:
                cluster.refuse_unseen({str(probe): f"cluster.storage ({location})"})
            finally:
                probe.unlink()
            yield Finding("shared folders", address, location)
    except UserError as error:
        yield Finding("cluster", address, "", error)
    finally:
        cluster.disconnect()


def _print(findings: "Sequence[Finding]", not_checked: Sequence[str]) -> None:
    """Print a line for each finding, and what was not looked at."""
    rows = [("what", "where", "found", "what to do")]
    for finding in findings:
        advice = f"{finding.level}: {finding.problem.what}; {finding.problem.fix}" if finding.problem else ""
        rows.append((finding.what, finding.where, finding.value, " ".join(advice.split())))
    print(format_table(rows, rule=False))
    for line in not_checked:
        print(f"not looked at: {line}")
    stops = sum(finding.level == "stops" for finding in findings)
    print(f"\n{stops} of {len(findings)} would stop a training", flush=True)


def _fact(finding: "Finding") -> FoundFact:
    problem = finding.problem
    return FoundFact(what=finding.what, where=finding.where, value=finding.value, level=finding.level,
                     problem=problem.what if problem else "", fix=problem.fix if problem else "")  # fmt: skip
