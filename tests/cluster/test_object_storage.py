"""Run storage in an object store, tried with SeaweedFS: gate, lease, run folders, checkpoints, report, a killed job."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import obstore
import pyarrow.fs
import pytest
import torch
from harness import hosts
from harness.claimants import LIMIT_S, Claimant, race
from harness.heads import ROOT
from harness.job_folder import write_job
from harness.object_store import BUCKET, ObjectStore, weed
from harness.pages import commands
from harness.toys import leave_status
from harness.two_hosts import recipe

from scalablevit.cli import report, runs
from scalablevit.cli.tree import parse
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Keep
from scalablevit.pipeline import cluster, node_checks
from scalablevit.pipeline.export_weights import export_weights
from scalablevit.pipeline.report import publish_job
from scalablevit.pipeline.resolve import resolve
from scalablevit.run_files import ATTEMPTS, LEASE, MANIFEST, REPORT, WEIGHTS
from scalablevit.runs.conditional_file import ConditionalFile
from scalablevit.runs.lease import Lease
from scalablevit.runs.result import load_result
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.outbox import Outbox
from scalablevit.training.checkpoint import BackgroundWriter, CheckpointStore
from scalablevit.training.ray_internals import Node
from scalablevit.training.state import Snapshot
from scalablevit.training.storage import check_storage, open_filesystem
from scalablevit.training.worker_result import TrainingEnd

pytestmark = pytest.mark.cluster

RACES = 15
STEPS = 200
JOB_S = 500
QUICK = {"RENEW_S": 0.1, "STALE_S": 1.0, "WATCH_S": 0.1}
TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


@pytest.fixture(autouse=True)
def variables(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.use(monkeypatch)


@pytest.fixture
def storage() -> str:
    """A folder of this test, as `cluster.storage` names it."""
    return f"s3://{BUCKET}/{secrets.token_hex(4)}"


def names_in(location: str) -> list[str]:
    """Names of the files below a location."""
    filesystem, path = open_filesystem(location)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.File)


# --- the gate ---


def test_run_storage_that_can_be_used_passes_and_keeps_nothing(storage: str) -> None:
    check_storage(storage)
    assert names_in(storage) == []


@pytest.mark.parametrize(
    ("key", "secret", "bucket", "what"),
    [("nobody", None, BUCKET, "does not know the access key (writing a small file: INVALID_ACCESS_KEY_ID)"),
     ("owner", "another", BUCKET, "refuses the secret of the access key"),
     ("owner", None, "missing", "there is no such bucket"),
     ("reader", None, BUCKET, "does not permit it with this access key, or without one (writing a small file"),
     ("writer", None, BUCKET, "does not permit it with this access key, or without one (reading a small file")],
)  # fmt: skip
def test_a_wrong_key_bucket_or_right_is_a_plain_error(
    key: str, secret: str | None, bucket: str, what: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.use(monkeypatch, key, secret)
    with pytest.raises(UserError) as caught:
        check_storage(f"s3://{bucket}/folder")
    assert what in caught.value.what and caught.value.fix
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_a_store_that_does_not_answer_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(UserError, match="the object store does not answer"):
        check_storage(f"s3://{BUCKET}/folder")


def test_a_node_without_the_drivers_key_is_named(
    storage: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is the only node: Ray may have been started on it before the variables were set."""
    import ray

    def ask(nodes: list[Node], question: Callable[[list[str]], Any], items: list[str], what: str) -> dict[str, Any]:
        with monkeypatch.context() as on_node:
            store.use(on_node, "nobody")
            return {each.id: question(items) for each in nodes}

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "a"))
    monkeypatch.setattr(cluster, "_ask_nodes", ask)
    found = cluster.find_on_nodes([Node("a", {"CPU": 2.0}, "127.0.0.1")], [storage])
    own, on_node = [each for each in found if each.what == "storage"]
    assert own.level == "good" and on_node.level == "stops"
    assert str(on_node.problem).startswith(f"cluster.storage ({storage}) on node 127.0.0.1: the object store does not")
    store.use(monkeypatch, "nobody")
    found = cluster.find_on_nodes([Node("a", {"CPU": 2.0}, "127.0.0.1")], [storage])
    assert [each.where for each in found if each.what == "storage"] == ["this process"], "said once"
    assert node_checks.storage_error(storage)[0]


# --- the lease ---


@pytest.fixture
def start(tmp_path: Path, storage: str) -> Iterator[Callable[..., Claimant]]:
    claimants: list[Claimant] = []

    def start(**settings: Any) -> Claimant:
        # a long SETTLE_S: with conditional writes nobody waits for it
        claimants.append(Claimant(tmp_path, **{"storage": storage, "SETTLE_S": 1000.0, **settings}))
        assert claimants[-1].answer() == {"ready": claimants[-1].pid}
        return claimants[-1]

    yield start
    for each in claimants:
        each.end()


def test_of_four_at_once_one_owns_the_run_in_every_race(start: Callable[..., Claimant], storage: str) -> None:
    claimants = [start() for _ in range(4)]
    for number in range(RACES):
        race(claimants, f"run-{number}")
        assert RunStore.at(f"run-{number}", storage, Path()).read(LEASE) == b"{}"
    assert names_in(storage) == [LEASE] * RACES


def test_an_owner_on_another_machine_that_overslept_stops(start: Callable[..., Claimant], storage: str) -> None:
    sleeper, other = start(machine="another", **QUICK), start(**QUICK)
    sleeper.owns()
    sleeper.send(signal.SIGSTOP)
    other.owns()
    sleeper.send(signal.SIGCONT)
    assert sleeper.answer() == {"interrupted": True}
    sleeper.process.wait(LIMIT_S)
    assert json.loads(RunStore.at("run", storage, Path()).read(LEASE) or b"")["process"] == other.pid


def test_who_reads_before_another_writes_does_not_win(storage: str) -> None:
    folder = f"{storage}/run"
    open_filesystem(folder)[0].create_dir(open_filesystem(folder)[1], recursive=True)
    first, second = ConditionalFile(folder, "file"), ConditionalFile(folder, "file")
    present: list[bytes | None] = []

    def may(content: bytes | None) -> bool:
        if not present:
            assert second.swap(lambda _: True, lambda: b"second")
        present.append(content)
        return content is None

    assert not first.swap(may, lambda: b"first")
    assert present == [None, b"second"]


def ignore_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    put = obstore.put

    def put_anyway(*given: Any, mode: object, **named: Any) -> Any:
        return put(*given, **named)

    monkeypatch.setattr(obstore, "put", put_anyway)


def keep_keys_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which pyarrow reads, and obstore does not."""
    file = Path(os.environ["PYTEST_KEYS"])
    file.write_text("[default]\n" + "".join(
        f"{name.lower()}={os.environ[name]}\n" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")))  # fmt: skip
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("change", "why"),
    [(ignore_conditions, "the store ignores the conditions of writes"), (keep_keys_in_a_file, "Generic S3 error")],
)
def test_without_conditional_writes_the_lease_says_that_it_is_the_weaker_one(
    change: Callable[[pytest.MonkeyPatch], None], why: str, storage: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTEST_KEYS", str(tmp_path / "keys"))
    change(monkeypatch)
    run = RunStore.open("run", storage, tmp_path)
    with Lease(run), pytest.raises(UserError, match="belongs to process"), Lease(run):
        pass
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("run run: its lease is the weaker one, by which the later of two jobs") and why in said
    assert names_in(storage) == [LEASE]


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize("region", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_variables_that_the_pages_name_are_read_by_both_libraries(
    variable: str, region: str, storage: str, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, store.endpoint)
    monkeypatch.setenv(region, "eu-central-1")
    check_storage(storage)
    assert open_filesystem(storage)[0].region == "eu-central-1"
    ConditionalFile(storage, "file")


# --- run folders, checkpoints, reports ---


def test_files_of_a_run_are_written_read_and_listed(storage: str, tmp_path: Path) -> None:
    run = RunStore.open("run", storage, tmp_path)
    assert run.location == f"{storage}/run" and run.read("none") is None and run.read_json("none") is None
    run.write("deep/in/it", b"content")
    run.write("deep/in/it", b"other")
    run.write_json("facts.json", {"a": 1})
    assert (run.read("deep/in/it"), run.read_json("facts.json")) == (b"other", {"a": 1})
    assert names_in(run.location) == ["facts.json", "it"] and list(run.local.iterdir()) == []


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(step, {"model": {"w": torch.randn(64, 32, generator=generator)}},
                    {"step": step, "last_metrics": {"val/top1": 0.5}})  # fmt: skip


def test_checkpoints_are_restored_and_torn_or_damaged_ones_are_not_used(storage: str) -> None:
    checkpoints = CheckpointStore(f"{storage}/run")
    assert checkpoints.newest() is None
    kept, torn, damaged = (checkpoints.write(snapshot(step), value) for step, value in ((3, 0.5), (6, None), (9, None)))
    checkpoints.filesystem.delete_file(f"{checkpoints.folder}/{torn}/{MANIFEST}")
    with checkpoints.filesystem.open_output_stream(f"{checkpoints.folder}/{damaged}/model.safetensors") as stream:
        stream.write(b"x")
    name, found = checkpoints.newest() or ("", None)
    assert name == kept and found is not None and damaged in checkpoints.passed_over
    assert torch.equal(found.files["model"]["w"], snapshot(3).files["model"]["w"])
    checkpoints.remove_incomplete()
    assert {entry.name for entry in checkpoints.entries()} == {kept, damaged} == set(checkpoints._folders())
    writer = BackgroundWriter(CheckpointStore(f"{storage}/run"), Keep(last=1, best=1))
    for step in (12, 15):
        writer.submit(snapshot(step), None)
    writer.wait()
    assert writer.failed is None and [entry.step for entry in checkpoints.entries()] == [3, 15]
    checkpoints.remove_all()
    assert checkpoints._folders() == []


def test_the_best_checkpoint_is_exported_here_and_there(storage: str, tmp_path: Path) -> None:
    resolved = resolve(load_recipe(TINY, [f"cluster.storage={storage}"]), tmp_path, ["pretrain"])[0]
    run = RunStore.open("run", storage, tmp_path)
    stem = "model" if resolved.stage.training.ema_decay is None else "ema"
    saved = snapshot(3)
    CheckpointStore(run.location).write(Snapshot(3, {stem: saved.files["model"]}, saved.meta), 0.5)
    outcome = TrainingEnd(
        step=3, best_step=3, best_value=0.5, best_metrics={}, last_metrics={"val/top1": 0.5}, seconds=1.0,
        spent={"data": 0.1, "checkpoint": 0.1, "evaluation": 0.1}, reason="finished", detail="", device="",
    )  # fmt: skip
    result = export_weights("tiny", resolved, {}, run, "1" * 32, outcome, 1.0)
    result.save(run)
    loaded = load_result(run)
    assert loaded is not None and (loaded.folder, loaded.value) == (f"{storage}/run", 0.5)
    assert (run.local / WEIGHTS).read_bytes() == run.read(WEIGHTS)


def test_a_job_stored_there_has_a_report_and_is_listed(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, stages, results = write_job(tmp_path, f"cluster.storage={storage}")
    whole = RunStore.open("tiny-0", None, tmp_path)
    outbox = Outbox(whole.outbox)
    publish_job(job, stages, results, whole, outbox)
    outbox.close()
    assert (whole.local / REPORT).is_file()
    local = tmp_path / "runs" / "tiny-pretrain-0"
    leave_status(local, folder=f"{storage}/tiny-pretrain-0")
    assert not (local / "result.json").exists() and "result.json" in names_in(f"{storage}/tiny-pretrain-0")
    with suppress(FileNotFoundError):
        (local / REPORT).unlink()
    assert report.run(parse("report", [str(local)])) == 0
    assert f"{storage}/tiny-pretrain-0" in (local / REPORT).read_text()
    leave_status(local, state="running", ended=None, folder=f"{storage}/tiny-pretrain-0")
    capsys.readouterr()
    with Lease(RunStore.at("tiny-pretrain-0", storage, tmp_path)):
        assert runs.run(parse("runs", ["list", "--root", str(tmp_path)])) == 0
    assert runs.run(parse("runs", ["list", "--root", str(tmp_path)])) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("tiny-pretrain-0")]
    assert lines == [["tiny-pretrain-0", "running"], ["tiny-pretrain-0", "lost"]]


# --- the store of the page ---


def test_the_store_that_the_page_starts_takes_runs_by_its_key_alone(tmp_path: Path) -> None:
    """On a host of its own, whose address stands for the page's."""
    if hosts.missing():
        pytest.skip(hosts.missing())
    (line,) = (each.text for each in commands(ROOT / "docs" / "clusters.md") if "weed server " in each.text)
    address = f"{hosts.NETWORK}.1"
    (tmp_path / "store").mkdir()
    command = line.replace("/path/to/", f"{tmp_path}/").replace("10.0.0.5", address).split()
    key = {"AWS_ENDPOINT_URL": f"http://{address}:8333", "AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "right"}
    tried = "from scalablevit.training.storage import check_storage; check_storage('s3://new/folder')"

    def use(host: hosts.Host, secret: str) -> str:
        """Why run storage cannot be used on the host; empty if it can."""
        env = {**os.environ, **key, "AWS_SECRET_ACCESS_KEY": secret, "PYTHONPATH": str(ROOT / "platform")}
        try:
            return host.run(sys.executable, "-c", tried, env=env)
        except AssertionError as error:
            return str(error)

    with hosts.hosts(1, tmp_path) as (host,):
        log = tmp_path / "weed.log"
        process = host.start(log, str(weed()), *command[1:], env={**os.environ, **key})
        end = time.monotonic() + LIMIT_S
        while said := use(host, "right"):
            assert time.monotonic() < end and process.poll() is None, f"{said}\n{log.read_text()[-3000:]}"
        assert "refuses the secret" in use(host, "another")
        listening = host.run("ss", "-Hltn").splitlines()
    assert {each.split()[3] for each in listening if "127.0.0.1" not in each} == {f"{address}:8333", f"{address}:18333"}


# --- a killed job ---


def start_job(root: Path, storage: str) -> "subprocess.Popen[bytes]":
    """A pretraining with two workers, on a Ray of its own, which ends with it."""
    whole = recipe(root.parent, STEPS, 10) | {
        "name": "stored",
        "model": {"name": "scalablevit_tiny", "drop_path_rate": 0.1},
        "cluster": {"workers": 2, "cpus_per_worker": 1, "storage": storage},
    }
    root.mkdir(exist_ok=True)
    file = root / "recipe.json"
    file.write_text(json.dumps(whole))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), "--recipe", str(file), "--root", str(root)]
    with (root / "job.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=root, env=environment)


def weights_of(root: Path, storage: str) -> str:
    """SHA-256 of the weights of the finished run."""
    (run,) = {path.parent.name for path in (root / "runs").glob(f"*/{ATTEMPTS}")}
    result = load_result(RunStore.at(run, storage, root))
    assert result is not None and result.step == STEPS
    return result.weights_sha256


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_job_of_two_workers_ends_bit_for_bit_as_one_that_was_not(storage: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    job = start_job(whole, f"{storage}/whole")
    try:
        assert job.wait(JOB_S) == 0, (whole / "job.log").read_text()
        job = start_job(killed, f"{storage}/killed")
        end = time.monotonic() + JOB_S
        while names_in(f"{storage}/killed").count(MANIFEST) < 2:
            assert time.monotonic() < end and job.poll() is None, (killed / "job.log").read_text()
            time.sleep(0.1)
        job.kill()
        job.wait()
        assert "result.json" not in names_in(f"{storage}/killed")
        job = start_job(killed, f"{storage}/killed")
        assert job.wait(JOB_S) == 0, (killed / "job.log").read_text()
    finally:
        job.kill()
        job.wait()
    (attempts,) = (killed / "runs").glob(f"*/{ATTEMPTS}")
    started = [event for event in map(json.loads, attempts.read_text().splitlines()) if event["event"] == "started"]
    assert [event["world"] for event in started] == [2, 2] and started[1]["from_step"] >= 10
    assert weights_of(killed, f"{storage}/killed") == weights_of(whole, f"{storage}/whole")
    assert "weaker" not in (killed / "job.log").read_text()
