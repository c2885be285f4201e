"""Connect to a Ray cluster, or start Ray here, and check that the stages fit on it and that all nodes see the files."""

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scalablevit.config.errors import UserError, raise_all
from scalablevit.config.recipe import Stage
from scalablevit.config.user_code import SHOWN_SUM, UserPackage, find_packages
from scalablevit.pipeline import node_checks
from scalablevit.pipeline.node_checks import Finding, NodeFacts
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.run_files import RUNS
from scalablevit.runs.console import Console, WaitReporter, say_while_waiting
from scalablevit.runs.signals import interruptible_start, raise_if_interrupted
from scalablevit.text import and_more
from scalablevit.training.environment import worker_variables
from scalablevit.training.ray_internals import JOB_VARIABLE, Node, alive_nodes, count_gpus
from scalablevit.training.room import (
    NODE_TYPES,
    Resources,
    ask_for_workers,
    find_autoscaler,
    format_types,
    least_workers,
    worker_resources,
    workers_on,
)

PACKAGE = Path(__file__).resolve().parent.parent
"""Folder of this package: in a job, of the uploaded copy."""
PROBE_S = 120.0
"""Longest wait, in seconds, for an answer from every node, which may first have to start a process."""
CONNECT_TIMEOUT_S = 10.0
"""Longest wait, in seconds, for a cluster's address to take a connection; Ray itself tries for many minutes."""
NODES_POLL_S = 1.0
"""Seconds between two looks at whether nodes have come."""
NO_FILES: Mapping[str, str] = MappingProxyType({})
START_HEAD_HINT = "start a head (python infra/head.py start), or unset RAY_ADDRESS to run on this machine"
"""What to do when no cluster answers."""


def connect(
    stages: Sequence[ResolvedStage],
    root: Path,
    trial_gpus: float | None = None,
    *,
    imports: Sequence[str] = (),
    files: Mapping[str, str] = NO_FILES,
) -> None:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray on this machine, and check that the stages fit.

    Where the cluster's autoscaler may start the nodes that are missing, they are asked for and waited for.

    This package is sent to the workers (Ray's `py_modules`), so driver and workers run the same code, installed or not.
    So are users' packages that are not installed; every node must have the same of each.

    Args:
        stages: what is to be trained.
        root: the platform's root.
        trial_gpus: GPUs of each worker of a search's trials; None: there is no search. Ray Tune's processes get their
            environment variables from the job alone: those of CPU workers where nothing of the job computes on a GPU.
        imports: users' modules that the job imports, besides those of the stages.
        files: paths that workers read, besides those of the stages; by path, its name in errors.

    Raises:
        UserError: the cluster does not answer, has too little room (with the arithmetic) also after
            `cluster.wait_for_nodes_minutes`, or has a node that does not see the files or has other users' code.
    """
    names = [*imports, *(name for resolved in stages for name in resolved.stage.imports)]
    packages = find_packages(names)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        _check_fit(stages, [local_resources()], "this machine")
    start_ray(packages, _trial_variables(stages, trial_gpus))
    hint = _await_nodes({f"stage {each.name}: ": each.stage for each in stages}) if address else ""
    nodes = alive_nodes()
    _check_fit(stages, [node.resources for node in nodes], f"the cluster of {len(nodes)} node(s)", hint)
    if address and not trial_gpus:  # the plan has those of this machine
        for warning in unused_gpus(stages, sum(node.resources.get("GPU", 0.0) for node in nodes), "the cluster"):
            print(f"warning: {warning}", flush=True)
    _check_nodes(stages, root, nodes)
    if len(nodes) > 1:
        _check_reach(stages, root, nodes, files)
        refuse_other_code(packages, nodes)


def start_ray(packages: Sequence[UserPackage] = (), variables: Mapping[str, str] | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, else start Ray on this machine, without further checks.

    Args:
        packages: users' packages that the job imports.
        variables: environment variables of the job's processes.

    Raises:
        UserError: the cluster does not answer, or another copy of this package may have been meant.
    """
    _refuse_other_package()
    address = os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        _check_address(address)
    import ray

    # Ray's placement-group cleaner reads the address
    variables = {**({"RAY_ADDRESS": address} if address else {}), **(variables or {})}
    try:
        with interruptible_start(), say_while_waiting("ray", "the cluster" if address else "Ray on this machine"):
            ray.init(
                address=address or "local",
                runtime_env={"py_modules": _sent_folders(packages), "env_vars": variables},
                log_to_driver=os.environ.get("SCALABLEVIT_RAY_LOGS") == "1",
                logging_level=logging.ERROR,
                configure_logging=True,
            )
    except Exception as error:  # also a plain Exception, as when a busy machine's node does not start within 30 s
        raise UserError(
            f"cannot {'connect to the cluster' if address else 'start Ray on this machine'}: "
            f"{(str(error) or repr(error)).splitlines()[0]}",
            where=f"RAY_ADDRESS={address}" if address else "",
            fix=START_HEAD_HINT if address else "try again when the machine is less busy",
        ) from None


def _sent_folders(packages: Sequence[UserPackage]) -> list[str]:
    """Return the folders of the packages that are sent to the workers."""
    return [str(PACKAGE), *(str(package.folder) for package in packages if not package.installed)]


def _refuse_other_package() -> None:
    """Refuse to train when another copy of this package may be the one that was meant.

    A job's upload is imported only by the scripts in `pipelines/`; and Ray's workers look into the driver's current
    folder before they look at what was sent to them.

    Raises:
        UserError: another copy of the package is in the job's upload or in the current folder.
    """
    here = Path.cwd()
    upload = [here / "platform" / PACKAGE.name] if JOB_VARIABLE in os.environ else []
    for other in (*upload, here / PACKAGE.name):
        if (other / "__init__.py").is_file() and other.resolve() != PACKAGE:
            raise UserError(
                f"this program is {PACKAGE}, but another copy of it is in {other}",
                where="current folder",
                fix="submit `python pipelines/<command>.py`, which runs the uploaded copy" if other in upload
                else "start it from another folder",
            )  # fmt: skip


def _trial_variables(stages: Sequence[ResolvedStage], trial_gpus: float | None) -> dict[str, str]:
    """Return environment variables for processes of trials; empty where the job has none or computes on GPUs."""
    if trial_gpus != 0 or any(resolved.stage.cluster.gpus_per_worker for resolved in stages):
        return {}
    config = json.loads(os.environ.get(JOB_VARIABLE, "{}"))
    # every process has the variables of the job, and Ray refuses to set them twice
    submitted = (config.get("runtime_env") or {}).get("env_vars") or {}
    return {name: value for name, value in worker_variables(0).items() if name not in submitted}


def _check_address(address: str) -> None:
    """Refuse an address for which Ray would raise a traceback, or only after many minutes.

    Raises:
        UserError: it is no cluster's, or nobody listens there.
    """
    where = f"RAY_ADDRESS={address}"
    if "://" in address:
        raise UserError(
            "that is where jobs are submitted, or Ray Client; a script itself connects to the cluster",
            where=where,
            fix="submit it (ray job submit --working-dir . -- python ...), or give the head's own address, <host>:6379",
        )
    if address in ("auto", "local"):  # have a meaning for Ray
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UserError("is no address of a cluster", where=where, fix="write <host>:<port>, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: an impossible host name
        raise UserError(f"the Ray cluster does not answer: {error}", where=where, fix=START_HEAD_HINT) from None


def disconnect() -> None:
    """Disconnect from the cluster: everything that this driver started there ends."""
    import ray

    ray.shutdown()


def has_room(stages: Sequence[ResolvedStage]) -> bool:
    """Return whether the connected cluster, were it empty, has room for all workers of all these stages at once.

    Nodes that its autoscaler may start count, unless a stage does not wait for them.
    """
    together = [stage.stage for stage in stages]
    return fit_together(together, [node.resources for node in alive_nodes()]) or fit_together(
        together, _most_nodes(together)
    )


def _most_nodes(stages: Sequence[Stage]) -> list[Resources]:
    """Return resources of the living nodes, and of those that the autoscaler may start if all stages wait for nodes."""
    living = alive_nodes()
    waits = all(stage.cluster.wait_for_nodes_minutes for stage in stages)
    autoscaler = find_autoscaler() if waits else None
    more = autoscaler.startable(living) if autoscaler else []
    return [*(node.resources for node in living), *(kind.resources for kind in more)]


def fit_together(stages: Sequence[Stage], nodes: Sequence[Resources]) -> bool:
    """Return whether the workers of all stages fit on the nodes at once, each worker on one node.

    Workers are placed largest first, each on the first node with room. That may miss a tight packing, but never claims
    one that does not exist.

    Args:
        stages: whose workers are placed.
        nodes: resources of each node, by Ray's names (`CPU`, `GPU`).
    """
    free = [dict(node) for node in nodes]
    wanted = [worker_resources(stage) for stage in stages for _ in range(stage.cluster.workers)]
    for worker in sorted(wanted, key=lambda worker: (worker["GPU"], worker["CPU"]), reverse=True):
        node = next((node for node in free if workers_on(node, worker) >= 1), None)
        if node is None:
            return False
        for kind, amount in worker.items():
            node[kind] = node.get(kind, 0.0) - amount
    return True


def count_copies(stage: Stage) -> int:
    """Return how many trainings like this stage the connected cluster, were it empty, has room for at once.

    Nodes that its autoscaler may start count, unless the stage does not wait for them.
    """
    return _count_copies(stage, _most_nodes([stage]))


def _count_copies(stage: Stage, nodes: Sequence[Resources]) -> int:
    count = 0
    while fit_together([stage] * (count + 1), nodes):
        count += 1
    return count


def count_processes(stage: Stage) -> int:
    """Return how many processes like a worker of this stage the connected cluster, were it empty, has room for.

    Only nodes that are there count, since a short task is not worth more; where none has room, one is waited for.

    Raises:
        UserError: there is room for none: a task would wait for it for ever.
    """
    one = {"workers": 1, "min_workers": None}
    stage = stage.model_copy(update={"cluster": stage.cluster.model_copy(update=one)})
    hint = _await_nodes({"": stage})
    count = _count_copies(stage, [node.resources for node in alive_nodes()])
    if not count:
        raise UserError(
            f"the cluster has no node with {stage.cluster.cpus_per_worker:g} CPU and "
            f"{stage.cluster.gpus_per_worker:g} GPU",
            where="cluster.cpus_per_worker, cluster.gpus_per_worker",
            fix=f"ask for less, such as cluster.gpus_per_worker=0, or unset RAY_ADDRESS to do it in this process{hint}",
        )
    return count


def local_resources(*, gpus: bool = True) -> dict[str, float]:
    """Return the CPUs and GPUs that Ray would find on this machine; without importing torch.

    Args:
        gpus: whether they are counted, for which Ray is imported.
    """
    return {"CPU": float(os.cpu_count() or 1), "GPU": float(count_gpus()) if gpus else 0.0}


def unused_gpus(stages: Sequence[ResolvedStage], gpus: float, whose: str) -> list[str]:
    """Return a warning where there are GPUs and no stage asks for one; else nothing.

    Args:
        stages: all that are trained.
        gpus: number of GPUs.
        whose: what has them, for the warning: `the cluster`.
    """
    if gpus < 1 or not stages or any(resolved.stage.cluster.gpus_per_worker for resolved in stages):
        return []
    return [f"{whose} has {gpus:g} GPUs, and no stage uses one: set cluster.gpus_per_worker=1"]


def _await_nodes(stages: Mapping[str, Stage]) -> str:
    """Let the autoscaler start nodes for the stages that living nodes have no room for, and wait for them.

    Args:
        stages: by the start of their `where` in errors.

    Returns:
        A hint for the error of a stage that still has no room: nobody says what an autoscaler may start.

    Raises:
        UserError: also all that the autoscaler may start has too little room, or the nodes did not come in time.
    """
    living = alive_nodes()
    there = [node.resources for node in living]
    short = {
        label: stage
        for label, stage in stages.items()
        if stage.cluster.wait_for_nodes_minutes and _room(stage, there) < least_workers(stage)
    }
    if not short:
        return ""
    autoscaler = find_autoscaler()
    if autoscaler is None:
        return f"; what an autoscaler of this cluster may start is not known here ({NODE_TYPES} can say it)"
    more = autoscaler.startable(living)
    what = f"the cluster of {len(living)} node(s), with all that its autoscaler may start ({format_types(more)}),"
    most = [*there, *(kind.resources for kind in more)]
    raise_all([error for label, stage in short.items() for error in _misfits(label, stage, most, what)])
    for label, stage in short.items():
        _await_room(label, stage, format_types(more))
    return ""


def _await_room(label: str, stage: Stage, more: str) -> None:
    """Ask the autoscaler for nodes until the stage's least number of workers has room, and say what is waited for.

    Args:
        label: start of `where` in errors.
        stage: what needs the nodes.
        more: what the autoscaler may start, for people.

    Raises:
        UserError: the nodes did not come within `cluster.wait_for_nodes_minutes`.
    """
    workers, minutes = least_workers(stage), stage.cluster.wait_for_nodes_minutes
    before, deadline, known = {node.id for node in alive_nodes()}, time.monotonic() + 60 * minutes, -1
    console = Console("cluster")
    waiting = WaitReporter(console, "room")
    try:
        with ask_for_workers(stage):
            while True:
                nodes = alive_nodes()
                there = [node.resources for node in nodes]
                room = _room(stage, there)
                if room >= workers:
                    return
                if room > known:
                    known, what = room, f"room: {room} of {workers} workers"
                    console.say(f"{label}waiting for {what}; the autoscaler may start up to {more}")
                    waiting.begin(what)
                if time.monotonic() > deadline:
                    came = sum(node.id not in before for node in nodes)
                    raise UserError(
                        f"after {minutes:g} minutes the cluster has room for {room} of {workers} workers "
                        f"({_arithmetic(stage, there)}): of what the autoscaler may start ({more}) {came} node(s) came",
                        where=f"{label}cluster.wait_for_nodes_minutes",
                        fix="`ray status` on the head says why nodes do not come; wait longer, or ask for less",
                    )
                waiting.update()
                time.sleep(NODES_POLL_S)
                raise_if_interrupted()
    finally:
        console.close()


def _check_fit(stages: Sequence[ResolvedStage], nodes: Sequence[Resources], what: str, hint: str = "") -> None:
    raise_all([error for each in stages for error in _misfits(f"stage {each.name}: ", each.stage, nodes, what, hint)])


def _misfits(label: str, stage: Stage, nodes: Sequence[Resources], what: str, hint: str = "") -> list[UserError]:
    """Return an error if the nodes have too few resources for the stage's least number of workers; else nothing."""
    workers = least_workers(stage)
    room = _room(stage, nodes)
    if room >= workers:
        return []
    return [
        UserError(
            f"{what} has room for {room} of {workers} workers ({_arithmetic(stage, nodes)})",
            where=f"{label}cluster.workers",
            fix=(f"set cluster.workers={room}, " if room else "") + f"ask less for each worker, or add nodes{hint}",
        )
    ]


def _room(stage: Stage, nodes: Sequence[Resources]) -> int:
    """Return how many workers of the stage the nodes, were they empty, have room for."""
    return sum(workers_on(node, worker_resources(stage)) for node in nodes)


def _arithmetic(stage: Stage, nodes: Sequence[Resources]) -> str:
    """Return what the stage's least number of workers takes, and what the nodes have."""
    workers = least_workers(stage)
    return "; ".join(
        f"{workers} x {amount:g} = {workers * amount:g} {kind} asked, "
        f"{sum(node.get(kind, 0.0) for node in nodes):g} there"
        for kind, amount in worker_resources(stage).items()
        if amount
    )


def _check_reach(
    stages: Sequence[ResolvedStage], root: Path, nodes: Sequence[Node], files: Mapping[str, str] = NO_FILES
) -> None:
    """Refuse nodes that cannot read what the driver writes to run storage, the data, initial weights or `files`.

    Raises:
        UserError: names the folders and the nodes that do not see them.
    """
    wanted = dict(files)
    with ExitStack() as probes:
        for resolved in stages:
            stage, keys = resolved.stage, f"stage {resolved.name}: "
            storage = storage_location(stage.cluster.storage, root)
            if "://" not in storage:
                probe = probes.enter_context(probe_file(storage))
                wanted[str(probe)] = f"{keys}cluster.storage ({storage})"
            data = str(root / Path(stage.data.root).expanduser())
            wanted[data] = f"{keys}data.root ({data})"
            if resolved.init_weights is not None and Path(resolved.init_weights.location).is_absolute():
                wanted[resolved.init_weights.location] = f"{keys}model.init ({resolved.init_weights.location})"
        refuse_unseen(wanted, nodes)


@contextmanager
def probe_file(folder: str) -> Iterator[Path]:
    """Yield a new file in a folder of this machine, by which other nodes show whether they see the folder."""
    probe = Path(folder, f".probe-{secrets.token_hex(8)}")
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        yield probe
    finally:
        probe.unlink()


def storage_location(given: str | None, root: Path) -> str:
    """Return the folder or address of run storage, by `cluster.storage`; None: not given."""
    storage = given or RUNS
    return storage if "://" in storage else str(root / Path(storage).expanduser())


def _check_nodes(stages: Sequence[ResolvedStage], root: Path, nodes: Sequence[Node]) -> None:
    """Refuse nodes that cannot train the stages, and print warnings; see `find_on_nodes`."""
    storages = sorted({storage_location(resolved.stage.cluster.storage, root) for resolved in stages})
    findings = find_on_nodes(nodes, storages, stages)
    for problem in node_checks.join_problems([finding for finding in findings if not finding.stops]):
        print(f"warning: {problem.where}: {problem.what}; {problem.fix}", flush=True)
    raise_all(node_checks.join_problems([finding for finding in findings if finding.stops]))


def find_on_nodes(
    nodes: Sequence[Node], storages: Sequence[str], stages: Sequence[ResolvedStage] | None = None
) -> list[Finding]:
    """Return what is good and bad on each node, before it costs a training time.

    Args:
        nodes: of the connected cluster; a single one is this machine.
        storages: locations of run storage; folders are created here if they do not exist.
        stages: what is to be trained: a node without room for a worker is passed over; None: not known, so that
            workers may be on every node.

    Raises:
        UserError: not every node answered in time.
    """
    for location in storages:
        if "://" not in location:
            with suppress(OSError):  # the nodes say what is wrong with it
                Path(location).mkdir(parents=True, exist_ok=True)
    answers: Mapping[str, NodeFacts]
    addresses = {location: node_checks.storage_error(location) for location in storages if "://" in location}
    found = [node_checks.find_storage(None, location, *error) for location, error in addresses.items()]
    own = nodes[0].id
    # nodes may have other keys than the driver; without Ray (no id) there are none, and what fails here is said once
    storages = [each for each in storages if each not in addresses or (own and not addresses[each][0])]
    if len(nodes) == 1 and not addresses.keys() & storages:
        answers = {own: node_checks.collect(["", *storages])}
    else:
        import ray

        own = ray.get_runtime_context().get_node_id()
        host = next(node.address for node in nodes if node.id == own)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server(("", 0), family=family, backlog=len(nodes)) as server:
            place = f"{host}:{server.getsockname()[1]}"
            answers = _ask_nodes(nodes, node_checks.collect, [place, *storages], "whether it can train")
        before = time.time()
        clocks = _ask_nodes(nodes, node_checks.read_clock, [], "what time it is")
        after = time.time()
        found += [node_checks.find_clock(node, before, clocks[node.id], after) for node in nodes if node.id in clocks]
    versions, connecting = node_checks.versions(), _connecting(nodes, stages)
    for node in nodes:
        hosted = [
            (each, room) for each in stages or () if (room := workers_on(node.resources, worker_resources(each.stage)))
        ]
        if node.id not in answers or (stages and not hosted):
            continue
        facts = answers[node.id]
        shared = [(0, 0)] + [
            node_checks.shared_bytes(each.stage, each.length.total, min(room, each.stage.cluster.workers))
            for each, room in hosted
        ]
        needed = None if stages is None else (max(least for least, _ in shared), max(most for _, most in shared))
        found += [
            node_checks.find_versions(node, facts, versions),
            node_checks.find_gpus(node, facts),
            node_checks.find_shared_memory(node, facts, needed),
            node_checks.find_disk(node, *facts.disk),
            *(node_checks.find_storage(node, location, *error) for location, error in facts.storage.items()),
        ]
        if node.id in connecting:
            ports = node_checks.find_ports(node, facts, stops=own in connecting)
            found += [node_checks.find_interface(node, facts), ports]
    return found


def _connecting(nodes: Sequence[Node], stages: Sequence[ResolvedStage] | None) -> set[str]:
    """Return the ids of nodes whose workers connect to those of other machines; see `find_on_nodes`."""
    if len({node.address for node in nodes}) == 1:
        return set()
    if stages is None:
        return {node.id for node in nodes if node.resources.get("CPU")}
    ids: set[str] = set()
    for stage in (resolved.stage for resolved in stages):
        room = {node.id: workers_on(node.resources, worker_resources(stage)) for node in nodes}
        if stage.cluster.workers > max(room.values()):  # else Ray puts all on one node if it is free
            ids |= {node for node, workers in room.items() if workers}
    return ids


def refuse_unseen(wanted: dict[str, str], nodes: Sequence[Node] | None = None) -> None:
    """Refuse nodes that cannot read some paths of this machine.

    Args:
        wanted: by path, its name in errors.
        nodes: to ask; None: all that are alive.

    Raises:
        UserError: names the paths and the nodes that do not see them, or not every node answered in time.
    """
    nodes = nodes or alive_nodes()
    missing = unreadable_on(nodes, list(wanted))
    failing = [node for node in nodes if missing.get(node.id)]
    if failing:
        paths = {path for node in failing for path in missing[node.id]}
        raise UserError(
            f"{len(failing)} of {len(nodes)} nodes do not see what is here ({_name_nodes(failing)})",
            where=", ".join(name for path, name in wanted.items() if path in paths),
            fix="use folders that every node mounts, such as --root /nfs/scalablevit, or cluster.storage=s3://...",
        )


def unreadable_on(nodes: Sequence[Node], paths: list[str]) -> dict[str, list[str]]:
    """Return the paths that a process on each node cannot read, by the node's id.

    Args:
        nodes: to ask.
        paths: absolute paths.

    Raises:
        UserError: not every node answered in time.
    """
    answers: dict[str, list[str]] = _ask_nodes(nodes, _find_unreadable, paths, "whether it sees the files")
    return answers


def refuse_other_code(packages: Sequence[UserPackage], nodes: Sequence[Node]) -> None:
    """Refuse nodes that import other users' packages than this machine.

    Args:
        packages: as this machine has them.
        nodes: to ask.

    Raises:
        UserError: names the packages and the nodes that have another one, or none; or not every node answered in time.
    """
    if not packages:
        return
    names = [package.name for package in packages]
    here = {package.name: package.content_sum() for package in packages}
    answers = _ask_nodes(nodes, _sums_here, names, "which code of yours it has")
    errors = []
    for package in packages:
        others = [
            f"{node.address}: {answers[node.id][package.name][:SHOWN_SUM] or 'none'}"
            for node in nodes
            if node.id in answers and answers[node.id][package.name] != here[package.name]
        ]
        if others:
            listed = ", ".join(others)
            errors.append(
                UserError(
                    f"{len(others)} of {len(nodes)} nodes have another {package.name} than this machine, whose "
                    f"content sum is {here[package.name][:SHOWN_SUM]} ({listed})",
                    where=f"imports: {package.name}",
                    fix="install the same version on every node"
                    if package.installed
                    else "remove the copy that those nodes import before the one that travels with the job; files that "
                    "a .gitignore names do not travel",
                )
            )
    raise_all(errors)


def _sums_here(names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each package on the node that runs this; empty where there is none."""
    sums: dict[str, str] = {}
    for name in names:
        try:
            sums |= {package.name: package.content_sum() for package in find_packages([name])}
        except UserError:
            sums[name] = ""
    return sums


def _ask_nodes(nodes: Sequence[Node], question: Callable[[list[str]], Any], items: list[str], what: str) -> Any:
    """Return what a function returns on each node, by the node's id; a node that leaves meanwhile is left out.

    Raises:
        UserError: not every node answered in time.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    pending = []
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node.id, soft=False)
        pending.append((node, ray.remote(question).options(num_cpus=0, scheduling_strategy=here).remote(items)))
    answers: dict[str, Any] = {}
    silent: list[Node] = []
    deadline = time.monotonic() + PROBE_S
    for node, answer in pending:
        try:
            answers[node.id] = ray.get(answer, timeout=max(0.0, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            silent.append(node)
        except ray.exceptions.RayError:
            if any(node.id == each.id for each in alive_nodes()):
                raise
    if silent:
        raise UserError(
            f"not every node answered within {PROBE_S:.0f} s {what} ({_name_nodes(silent)} did not)",
            where="cluster",
            fix="look at `ray status`; remove nodes that do not work",
        )
    return answers


def _name_nodes(nodes: Sequence[Node]) -> str:
    """Return the addresses of nodes, of at most `node_checks.SHOWN`."""
    return ", ".join(node.address for node in nodes[: node_checks.SHOWN]) + and_more(len(nodes), node_checks.SHOWN)


def _find_unreadable(paths: list[str]) -> list[str]:
    return [path for path in paths if not os.access(path, os.R_OK)]
