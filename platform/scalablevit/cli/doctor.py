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
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.text import format_table
from scalablevit.tracking.connection import check_response, check_uri, mask, without_credentials

if TYPE_CHECKING:
    from scalablevit.pipeline.node_checks import Finding

EPILOG = """\
Looks at the Ray cluster that RAY_ADDRESS names; without it at this machine alone, and no Ray is started. Nothing is
trained; a small file is written to run storage and deleted. A training checks the same of its nodes and storage before
it starts, and prints the same sentences.

Exit codes: 0 nothing stops a training (there may be warnings); 2 something does, which you can fix; 130 interrupted."""
ENTRY = Path("pipelines", "full.py")
"""In folders from which jobs are submitted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_root(parser)
    parser.add_argument("--uri", help="MLflow's tracking URI (default: sqlite:///<root>/mlflow.db)")
    parser.add_argument("--storage", help="run storage, as a recipe's cluster.storage (default: <root>/runs)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check everything, and print a line for each finding; see `add_arguments`.

    Raises:
        UserError: the root is of no use.
    """
    with stdout_to_stderr(options.json):
        root = platform_root(options.root)
        uri = options.uri or tracking_uri(None, root)
        nodes = "other nodes, their clocks, addresses, ports and shared folders, and the token: RAY_ADDRESS is not set"
        upload = f"the upload of a job: {ENTRY} is not in the current folder"
        not_checked = (nodes,) * (not os.environ.get("RAY_ADDRESS")) + (upload,) * (not ENTRY.is_file())
        facts = [_fact(finding, uri) for finding in (*_find_here(root, uri), *_find_on_nodes(root, options.storage))]
        _print(facts, not_checked)
    if options.json:
        print_document(Diagnosis(root=str(root), findings=tuple(facts), not_checked=not_checked))
    return 2 if any(fact.level == "stops" for fact in facts) else 0


def _find_here(root: Path, uri: str) -> "Iterator[Finding]":
    """Yield what belongs to no node: the root's disk, MLflow, the upload."""
    from scalablevit.pipeline.node_checks import Finding, find_disk, find_upload
    from scalablevit.training.ray_internals import upload_size

    disk = shutil.disk_usage(root)
    yield find_disk("--root", str(root), disk.free, disk.total)
    refused = True
    try:
        check_uri(uri)
        refused = False
        yield Finding("tracking", without_credentials(uri), check_response(uri))
    except UserError as error:
        yield Finding("tracking", without_credentials(uri), "", error, stops=refused)  # no training waits for a server
    if ENTRY.is_file():
        yield find_upload(str(Path.cwd()), *upload_size(Path.cwd()))


def _find_on_nodes(root: Path, storage: str | None) -> "Iterator[Finding]":
    """Yield what belongs to the nodes of the cluster, or to this machine."""
    import ray

    from scalablevit.pipeline import cluster
    from scalablevit.pipeline.node_checks import Finding, find_token
    from scalablevit.training.ray_internals import Node, alive_nodes

    location, address = cluster.storage_location(storage, root), os.environ.get("RAY_ADDRESS")
    if not address:
        yield from cluster.find_on_nodes([Node("", cluster.local_resources(), "this machine")], [location])
        return
    try:
        cluster.start_ray()
        nodes = alive_nodes()
        yield Finding("cluster", address, f"{len(nodes)} nodes")
        yield find_token(ray.get_runtime_context().gcs_address, os.environ.get("RAY_AUTH_MODE", ""))
        found = cluster.find_on_nodes(nodes, [location])
        yield from found
        if "://" not in location and not any(finding.what == "storage" and finding.problem for finding in found):
            with cluster.probe_file(location) as probe:
                cluster.refuse_unseen({str(probe): f"cluster.storage ({location})"})
            yield Finding("shared folders", address, location)
    except UserError as error:
        yield Finding("cluster", address, "", error)
    finally:
        cluster.disconnect()


def _fact(finding: "Finding", uri: str) -> FoundFact:
    """Return a finding as the document has it, without the secrets of MLflow's address and of the environment."""
    problem = finding.problem or UserError("")
    shown = {"what": finding.what, "where": finding.where, "value": finding.value, "problem": problem.what,
             "fix": problem.fix}  # fmt: skip
    return FoundFact(level=finding.level, **{name: mask(text, uri) for name, text in shown.items()})


def _print(facts: Sequence[FoundFact], not_checked: Sequence[str]) -> None:
    """Print a line for each fact, and what was not looked at."""
    rows = [("what", "where", "found", "what to do")]
    for fact in facts:
        advice = f"{fact.level}: {fact.problem}; {fact.fix}" * bool(fact.problem)
        rows.append((fact.what, fact.where, fact.value, " ".join(advice.split())))
    print(format_table(rows, rule=False))
    for line in not_checked:
        print(f"not looked at: {line}")
    print(f"\n{sum(fact.level == 'stops' for fact in facts)} of {len(facts)} would stop a training", flush=True)
