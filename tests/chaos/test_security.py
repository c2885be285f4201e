"""Nothing that the platform reads is executed, nothing leads out of its folder, and no secret is shown or kept."""

import ast
import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import struct
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness.hostile_data import Evil
from safetensors.torch import save as safetensors

from scalablevit.cli import main
from scalablevit.cli.exit_codes import run_command
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.models.backbone import build_classifier
from scalablevit.models.weights import load_init_weights, read_tensors
from scalablevit.pipeline.export_weights import export_weights
from scalablevit.pipeline.init_weights import find_init_weights
from scalablevit.pipeline.resolve import ResolvedStage, resolve
from scalablevit.pipeline.stage import Job, _begin
from scalablevit.run_files import MANIFEST
from scalablevit.runs.result import without_secrets
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.connection import bounded_requests, connect
from scalablevit.tracking.outbox import Outbox
from scalablevit.tracking.sync import OutboxSync
from scalablevit.tracking.tags import CONFIG_SHA256, WEIGHTS_SHA256
from scalablevit.tracking.weights import resolve_weights
from scalablevit.training.checkpoint import CheckpointStore, DamagedCheckpoint, _own_sum
from scalablevit.training.state import Snapshot
from scalablevit.training.worker_result import TrainingEnd

pytestmark = [
    pytest.mark.row("Security: evil files, planted secrets"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # torch's, before it refuses the file
]

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "end_to_end" / "tiny.yaml"


@pytest.fixture(autouse=True)
def _no_pause_before_a_repeated_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are repeated as often as ever; nobody is at these addresses later either."""
    for name in ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER"):
        monkeypatch.setenv(name, "0")


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that unpickling `Evil` makes; at the end of a test it must not be there."""
    path = tmp_path / "executed"
    monkeypatch.setenv("CANARY", str(path))
    yield path
    assert not path.exists(), "something that was read was executed"


def test_the_canary_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, content in enumerate(EVIL.values()):
        path = tmp_path / str(number)
        monkeypatch.setenv("CANARY", str(path))
        with contextlib.suppress(Exception):  # it may go on to fail, once it has executed
            torch.load(io.BytesIO(content), weights_only=False)
        assert path.is_dir()


# --- evil pickles ---


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def evil_text() -> bytes:
    """A hand-written pickle of protocol 0: what scanners for opcodes miss."""
    call = "import os; os.mkdir(os.environ['CANARY'])"
    return f"cbuiltins\nexec\n(V{call}\ntR.".encode()


class Shell:
    """Calls a shell where `Evil` calls `eval`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ('mkdir "$CANARY"',)


EVIL = {
    "plain": pickle.dumps(Evil()),
    "old protocol": pickle.dumps(Evil(), protocol=0),
    "text": evil_text(),
    "shell": pickle.dumps(Shell()),
    "saved by torch": saved(Evil()),
    "among tensors": saved({"w": torch.ones(1), "x": Evil()}),
    "in a state dict": saved({"state_dict": {"w": torch.ones(1)}, "meta": Evil()}),
    "in a model": saved({"model": {"conv.weight": Evil()}}),
    "old form of torch": saved({"w": Evil()}, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("kind", EVIL)
def test_initial_weights_are_never_executed(kind: str, suffix: str, tmp_path: Path, canary: Path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(EVIL[kind])
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and "fix:" in str(caught.value)


def test_a_model_is_not_filled_from_a_pickle(tmp_path: Path, canary: Path):
    model = build_classifier("resnet18", 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    (tmp_path / "weights.pth").write_bytes(EVIL["in a model"])
    with pytest.raises(UserError, match="could run code"):
        load_init_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_zip_that_leads_out_of_its_folder_is_not_unpacked(tmp_path: Path, canary: Path):
    """`.pth` is the one archive that is read: by torch, from memory."""
    path = tmp_path / "deep" / "weights.pth"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.txt", "x")
        archive.writestr("weights/data.pkl", EVIL["plain"])
        archive.writestr("weights/version", "3\n")
    with pytest.raises(UserError):
        read_tensors(path)
    assert not list(tmp_path.rglob("escaped.txt"))


SAFETENSORS = {
    "header of a lying length": struct.pack("<Q", 2**62) + b"{}",
    "offsets out of the file": struct.pack("<Q", 58)
    + b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,999999]}}'[:58],
    "no json": struct.pack("<Q", 4) + b"evil",
    "empty": b"",
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_damaged_safetensors_are_refused(kind: str, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    with pytest.raises(UserError, match="is damaged or no weights"):
        read_tensors(path)


# --- checkpoints ---


def resummed(folder: Path, change: Callable[[dict[str, Any]], None] = lambda manifest: None) -> None:
    """A manifest as an attacker would write it: every sum right."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for file, entry in manifest["files"].items():
        content = (folder / file).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = _own_sum(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[CheckpointStore, Path]:
    store = CheckpointStore(str(tmp_path / "run"))
    name = store.write(Snapshot(3, {"model": {"w": torch.ones(2)}}, {"step": 3}), 0.5)
    return store, tmp_path / "run" / "checkpoints" / name


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("kind", EVIL)
def test_checkpoints_are_never_executed(kind: str, file: str, checkpoint: Any, canary: Path):
    store, folder = checkpoint
    (folder / file).write_bytes(EVIL[kind])
    resummed(folder)
    with pytest.raises(UserError, match="every checkpoint of this run is damaged"):
        store.newest()


def test_a_pickle_beside_the_files_of_a_checkpoint_is_left_alone(checkpoint: Any, canary: Path):
    store, folder = checkpoint
    (folder / "extra.pkl").write_bytes(EVIL["plain"])
    (folder / "__init__.py").write_text("import os; os.mkdir(os.environ['CANARY'])")
    assert store.newest() is not None


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "../step_000000003-00000000/state.json", "..", "a/b"])
def test_a_manifest_does_not_lead_out_of_its_folder(name: str, checkpoint: Any, tmp_path: Path):
    store, folder = checkpoint
    secret = safetensors({"w": torch.ones(2)})
    (tmp_path / "outside").write_bytes(secret)
    entry = {"sha256": hashlib.sha256(secret).hexdigest(), "bytes": len(secret)}
    resummed(folder, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(UserError, match=r"leaves the folder|is missing"):
        store.newest()
    with pytest.raises(DamagedCheckpoint, match=r"leaves the folder|is missing"):
        store.verified_file(folder.name, name)


def test_resume_state_is_no_pickle(checkpoint: Any):
    _, folder = checkpoint
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".json"}
    json.loads((folder / "state.json").read_text())


# --- recipes ---

YAML_TAGS = [
    "!!python/object/apply:os.mkdir [$CANARY]",
    "!!python/object/new:os.mkdir [$CANARY]",
    "!!python/name:os.mkdir",
    "!!python/module:os",
    "!!python/object:hostile_data.Evil {}",
    "!!python/tuple [a]",
    "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [$CANARY]",
    "!ENV ${CANARY}",
    "!include /etc/passwd",
    "!!binary aGk=",
    "!!set {a}",
    "!!timestamp 2001-01-01",
]


@pytest.mark.parametrize("tag", YAML_TAGS)
def test_tags_in_recipes_are_refused(tag: str, tmp_path: Path, canary: Path):
    text = tag.replace("$CANARY", str(canary))
    path = tmp_path / "r.yaml"
    path.write_text(f"name: {text}\n")
    with pytest.raises(UserError, match="tags"):
        load_recipe(path)
    path.write_text(TINY.read_text() + f"\n{text}: 1\n")
    with pytest.raises(UserError):
        load_recipe(path)
    with pytest.raises(UserError, match="tags"):
        load_recipe(TINY, [f"data.root={text}"])


@pytest.mark.parametrize(
    "override",
    [
        "stages.pretrain.data.train.images=../../etc",
        "stages.pretrain.data.train.images=/etc",
        "stages.segment.data.train.masks=a/../../b",
        "stages.detect.data.val.annotations=../../secret.json",
        "name=../../outside",
        "name=/outside",
        "tracking.register_as=../outside",
        "data.root=~root/secret",
    ],
)
def test_paths_in_recipes_do_not_lead_out(override: str):
    with pytest.raises(UserError):
        load_recipe(TINY, [override])


def test_text_in_recipes_is_not_expanded(tmp_path: Path, canary: Path):
    """Neither variables nor commands: names are only names."""
    for text in ("$CANARY", "${CANARY}", "`mkdir $CANARY`", "$(mkdir $CANARY)", "{0.__class__}", "%(CANARY)s"):
        assert load_recipe(TINY, [f"data.root='{text}'"]).stages["pretrain"].data.root == text


# --- what the code may use ---

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "zipfile", "tarfile"}
ARCHIVES = {
    ("platform/scalablevit/data/packing.py", "tarfile"),
    ("platform/scalablevit/models/torch_archive.py", "zipfile"),
    ("platform/scalablevit/data/sources/listing.py", "zipfile"),
    ("platform/scalablevit/tracking/registry.py", "zipfile"),
}
"""Modules that may use these: one writes shards; one compares the sizes that an archive declares, before torch.load of
weights only; one packs what a source found in its folders, and reads it again into memory, by the names of entries and
up to a size, after its SHA-256 was compared (tests/data/test_listing.py); one packs our code
for the registry. None takes an archive apart into files, which the calls below would show."""
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "unpack_archive",
    "extract",
    "extractall",
    "unsafe_load",
    "full_load",
}


def test_the_package_neither_unpickles_nor_unpacks_nor_evaluates():
    """The readers above are all there are: no other one uses what could execute data."""
    found = []
    for path in sorted((REPOSITORY / "platform").rglob("*.py")) + sorted((REPOSITORY / "pipelines").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {each.name.partition(".")[0] for each in node.names} & FORBIDDEN_IMPORTS
            elif isinstance(node, ast.ImportFrom):
                names = {str(node.module).partition(".")[0]} & FORBIDDEN_IMPORTS
            elif isinstance(node, ast.Call):
                called = node.func
                plain = isinstance(called, ast.Name)
                name = called.id if plain else getattr(called, "attr", "")
                # `model.eval()`, `re.compile()` and `torch.compile()` are methods of those names
                names = {name} & (FORBIDDEN_CALLS if plain else FORBIDDEN_CALLS - {"eval", "compile"})
                if any(each.arg == "shell" for each in node.keywords):
                    names.add("shell")
                if ast.unparse(called) == "torch.load":
                    names.add("torch.load")
            file = str(path.relative_to(REPOSITORY))
            found += [f"{file}:{node.lineno} {name}" for name in names if (file, name) not in ARCHIVES]
    assert not found


# --- registered weights ---


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def test_registered_weights_are_never_executed(store_uri: str, tmp_path: Path, canary: Path):
    """A version whose sums are right and whose weights are a pickle, as somebody with write access could make it."""
    client = connect(store_uri)
    artifacts = tmp_path / "version"
    (artifacts / "artifacts").mkdir(parents=True)
    contents = {"weights.safetensors": EVIL["in a model"], "config.json": b'{"stage": {"version": 2}}'}
    for name, content in contents.items():
        (artifacts / "artifacts" / name).write_bytes(content)
    (artifacts / "python_model.pkl").write_bytes(EVIL["plain"])
    (artifacts / "MLmodel").write_text("flavors: {python_function: {loader_module: hostile_data}}")
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    client.create_registered_model("evil")
    client.create_model_version(
        "evil", artifacts.as_uri(),
        tags={WEIGHTS_SHA256: sums["weights.safetensors"], CONFIG_SHA256: sums["config.json"]}, await_creation_for=0,
    )  # fmt: skip
    found = resolve_weights("models:/evil/1", store_uri, tmp_path / "cache")
    assert found.config == {"stage": {}}
    assert sorted(file.name for file in found.weights.parent.iterdir()) == ["config.json", "weights.safetensors"]
    with pytest.raises(UserError):
        read_tensors(found.weights)
    (artifacts / "artifacts" / "weights.safetensors").write_bytes(EVIL["plain"])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="differ from the SHA-256 sums"):
        resolve_weights("models:/evil/1", store_uri, tmp_path / "cache")


@pytest.mark.parametrize("tag", ["../../escaped", "/etc", "", "0" * 63, "0" * 64 + "/x"])
def test_a_tag_that_would_be_a_path_is_refused(tag: str, store_uri: str, tmp_path: Path):
    client = connect(store_uri)
    name = f"tag-{hashlib.sha256(tag.encode()).hexdigest()[:8]}"
    client.create_registered_model(name)
    tags = {CONFIG_SHA256: "0" * 64} | ({WEIGHTS_SHA256: tag} if tag else {})
    client.create_model_version(name, tmp_path.as_uri(), tags=tags, await_creation_for=0)
    with pytest.raises(UserError, match="carries no SHA-256"):
        resolve_weights(f"models:/{name}/1", store_uri, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# --- secrets ---

ENVIRONMENT = [
    "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "DATABASE_PASSWORD", "GITHUB_TOKEN", "HF_TOKEN", "SOME_API_KEY",
]  # fmt: skip
SECRETS = {name: f"canary-{number:02}-{name.lower()}" for number, name in enumerate(ENVIRONMENT)} | {
    "uri password": "canary-20-pass%40word",
    "uri token": "canary-21-token",
    "uri query": "canary-22-query",
    "tracking as text": "canary-23-text",
    "misspelt override": "canary-24-override",
    "wrong type": "canary-25-type",
    "database": "canary-26-database",
    "storage": "canary-27-storage",
    "data": "canary-28-data",
    "initial weights": "canary-29-weights",
    "sqlite": "canary-30-sqlite",
    "proxy": "canary-31-proxy",
}


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, SECRETS[name])


def leaks(text: str) -> list[str]:
    plain = text.replace("%40", "@")
    return [name for name, secret in SECRETS.items() if secret in text or secret.replace("%40", "@") in plain]


def leaks_in(folder: Path) -> list[str]:
    """Canaries in names and contents of files, text or not (databases among them)."""
    found = []
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        found += [f"{file}: {name}" for name in leaks(str(file) + content.decode("latin-1"))]
    return found


REFUSED_WITH_SECRETS = [
    ["tracking=http://user:$tracking as text@host/"],
    ["tracking.urii=http://user:$misspelt override@host/"],
    ["trackin.uri=http://user:$misspelt override@host/"],
    ["tracking.uri=[http://user:$wrong type@host/]"],
    ["tracking.uri={a: http://user:$wrong type@host/}"],
    ["tracking.uri=http://user:$wrong type@host/ : x"],
    ["tracking.uri=postgresql://user:$database@host/mlflow"],
    ["tracking.uri=mysql+pymysql://user:$database@host/mlflow"],
    ["tracking.uri=sqlite:///mlflow.db?password=$sqlite"],
    ["stages.pretrain.tracking.uri=http://user:$uri password@host/"],
    ["cluster.storage=s3://key:$storage@bucket/runs"],
    ["cluster.storage=s3://bucket/runs?secret_key=$storage"],
    ["data.root=s3://key:$data@bucket/set", "data.shapes=null"],
    ["stages.pretrain.model.init=https://user:$initial weights@host/w.pth"],
    ["stages.pretrain.model.init=models:/x@y", "tracking.uri=http://user:$uri password@127.0.0.1:9/"],
    ["stages.pretrain.model.init=models:/x@y", "tracking.uri=http://$uri token@127.0.0.1:9/"],
    ["stages.pretrain.model.init=models:/x@y", "tracking.uri=http://127.0.0.1:9/?token=$uri query"],
]


def with_secrets(text: str) -> str:
    for name, secret in SECRETS.items():
        text = text.replace(f"${name}", secret)
    return text


@pytest.mark.parametrize("overrides", REFUSED_WITH_SECRETS, ids=lambda overrides: overrides[-1])
def test_errors_show_no_secret(overrides: list[str], planted: None, tmp_path: Path, capsys: Any, caplog: Any):
    """Through the script's own frame, so that a traceback counts as a leak too."""
    caplog.set_level(logging.DEBUG)
    overrides = [with_secrets(override) for override in overrides]

    def work() -> int:
        with bounded_requests(1, 0):
            resolve(load_recipe(TINY, overrides), tmp_path, ["pretrain"])
        return 0

    assert run_command(work) == 2
    shown = "".join(capsys.readouterr())
    assert "fix" in shown or "tracking" in shown or "storage must" in shown or "is not read yet" in shown
    assert not leaks(shown + caplog.text), shown + caplog.text
    assert not leaks_in(tmp_path)


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ResolvedStage]:
    """A resolved stage whose recipe carries the password of its tracking server."""
    root = tmp_path_factory.mktemp("root")
    uri = with_secrets("http://user:$uri password@127.0.0.1:9")
    recipe = load_recipe(TINY, [f"tracking.uri={uri}"])
    return root, resolve(recipe, root, ["pretrain"])[0]


def recorded(root: Path, resolved: ResolvedStage, uri: str) -> tuple[RunStore, Outbox]:
    """What a job writes when a stage begins and when it ends, without training in between."""
    store = RunStore.open(resolved.run_name, None, root)
    outbox = Outbox(store.outbox)
    job = Job(root, "tiny", "0" * 32, uri)
    outbox.run(job.uid, "tiny", experiment="secrets")
    stage = resolved.stage.model_copy(
        update={"tracking": resolved.stage.tracking.model_copy(update={"experiment": "secrets"})}
    )
    resolved = replace(resolved, stage=stage)
    _begin(job, resolved, None, store, outbox, "1" * 32)
    CheckpointStore(store.location).write(
        Snapshot(3, {"model": {"w": torch.ones(2)}}, {"step": 3, "last_metrics": {"val/top1": 0.5}}), 0.5
    )
    outcome = TrainingEnd(
        step=3, best_step=3, best_value=0.5, best_metrics={}, last_metrics={"val/top1": 0.5}, seconds=1.0,
        spent={"data": 0.1, "checkpoint": 0.1, "evaluation": 0.1}, reason="finished", detail="", device="",
    )  # fmt: skip
    export_weights("tiny", resolved, {}, store, "1" * 32, outcome, 1.0).save(store)
    outbox.artifact("1" * 32, store.local / "model" / "config.json")
    outbox.end("1" * 32, "FINISHED")
    outbox.end(job.uid, "FINISHED")
    return store, outbox


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:$uri password@127.0.0.1:9",
        "http://$uri token@127.0.0.1:9",
    ],
)
def test_an_outage_shows_and_keeps_no_secret(
    uri: str, pretrain: tuple[Path, ResolvedStage], planted: None, tmp_path: Path, caplog: Any, monkeypatch: Any
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("http_proxy", with_secrets("http://user:$proxy@127.0.0.1:9"))
    _, resolved = pretrain
    uri = with_secrets(uri)
    store, outbox = recorded(tmp_path, resolved, uri)
    outbox.close()
    sync = OutboxSync(store.outbox, uri, request_timeout_s=1)
    pending = sync.send_left()
    assert pending.records > 5 and pending.error
    shown = f"{pending} {sync.status()} {caplog.text}"
    assert not leaks(shown), shown
    assert not leaks_in(tmp_path)


def test_a_store_holds_no_secret(
    pretrain: tuple[Path, ResolvedStage], store_uri: str, planted: None, tmp_path: Path, caplog: Any
):
    caplog.set_level(logging.DEBUG)
    _, resolved = pretrain
    store, outbox = recorded(tmp_path, resolved, store_uri)
    outbox.close()
    sync = OutboxSync(store.outbox, store_uri)
    pending = sync.send_left()
    assert pending.records == 0 and pending.refused == 0, pending
    assert (store.local / "recipe.yaml").is_file() and (store.local / "environment.json").is_file()
    folder = Path(store_uri.removeprefix("sqlite:///")).parent
    assert list(folder.rglob("recipe.yaml")) and list(folder.rglob("config.json"))
    for place in (tmp_path, folder):
        assert not leaks_in(place)
    assert not leaks(caplog.text)


def test_the_dry_run_prints_no_secret(pretrain: tuple[Path, ResolvedStage], planted: None, capsys: Any):
    root, _ = pretrain
    uri = with_secrets("http://user:$uri password@127.0.0.1:9/")
    assert main("pretrain", ["--recipe", str(TINY), "--root", str(root), "--dry-run", f"tracking.uri={uri}"]) == 0
    shown = "".join(capsys.readouterr())
    (written,) = (root / "cache" / "plans").iterdir()
    assert f"resolved recipe: {written}" in shown and not leaks(shown) and not leaks_in(written.parent)


def test_what_workers_are_given_holds_no_secret(pretrain: tuple[Path, ResolvedStage]):
    _, resolved = pretrain
    assert leaks(resolved.stage.model_dump_json())
    assert not leaks(without_secrets(resolved.stage).model_dump_json())


def test_a_traceback_shows_no_secret(planted: None, capsys: Any):
    def fails() -> int:
        raise RuntimeError(
            with_secrets("API request to http://user:$uri password@host/api failed; tried $MLFLOW_TRACKING_TOKEN")
        )

    assert run_command(fails) == 1
    shown = "".join(capsys.readouterr())
    assert "RuntimeError" in shown and not leaks(shown)


def test_initial_weights_of_the_registry_are_asked_for_without_showing_a_secret(
    pretrain: tuple[Path, ResolvedStage], planted: None, tmp_path: Path
):
    _, resolved = pretrain
    stage = resolved.stage.model_copy(update={"model": resolved.stage.model.model_copy(update={"init": "models:/x@y"})})
    with pytest.raises(UserError) as caught, bounded_requests(1, 0):
        find_init_weights(stage, tmp_path)
    shown = "".join(traceback.format_exception(caught.value))
    assert not leaks(shown), shown


def test_there_are_twenty_canaries():
    assert len(SECRETS) == len(set(SECRETS.values())) == 20
