"""The second and third gate by table: a case for every UserError that they make, and none without one.

What initial weights are refused for is tried by tests/models/test_weights.py and tests/tracking/test_registry.py, the
first gate by test_hostile_recipes.py and test_hostile_spaces.py.
"""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness.hostile_data import png
from harness.object_store import ObjectStore, refusing
from harness.refusals import lines_of, record, written_in

from scalablevit.config import model_names
from scalablevit.config.data import Shapes
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.config.user_code import UserPackage
from scalablevit.data import coco, coco_records, labels, shapes
from scalablevit.data.sources import (
    annotated_names,
    base,
    class_names,
    files,
    image_folder,
    mask_names,
    mask_pairs,
    opening,
    tar_shards,
)
from scalablevit.data.sources import coco as coco_source
from scalablevit.pipeline import cluster, init_weights, stage_model
from scalablevit.pipeline import resolve as second_gate
from scalablevit.pipeline.resolve import ResolvedStage, resolve, resolve_evaluation, wanted_stages
from scalablevit.pipeline.stage_model import check_micro_batches, model_cost
from scalablevit.tracking import connection
from scalablevit.training import storage
from scalablevit.training.ray_internals import Node

REPOSITORY = Path(__file__).parents[2]
TINY = REPOSITORY / "tests" / "end_to_end" / "tiny.yaml"
SMALL = ("data.root=data", "data.shapes=null", "cluster.workers=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a small data set for all tasks."""
    root = tmp_path_factory.mktemp("root")
    shapes.write_shapes(Shapes(train_images=18, val_images=12, image_size=48), root / "data")
    (root / "data" / shapes.MARKER).unlink()  # as if it were a user's
    return root


# --- the second gate: model and data ---


def nothing(data: Path) -> None:
    pass


@dataclass(frozen=True)
class Case:
    """What is wrong, which script meets it, and what it says."""

    said: str
    script: str
    overrides: tuple[str, ...] = ()
    change: Callable[[Path], Any] = nothing
    """What is done to the data before."""
    recipe: Path = TINY


def named(text: str) -> Callable[[Path], None]:
    return lambda data: write(data / "segmentation/classes.txt", text.encode("latin-1"))


def write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def link_away(data: Path, name: str) -> None:
    """The file or folder moves out of the data set, and a link to it stays."""
    away = data.parent / "away"
    (data / name).rename(away)
    (data / name).symlink_to(away)


def first_image(folder: Path) -> Path:
    return min(file for file in folder.rglob("*") if file.suffix in (".jpg", ".png"))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def unicode_twins(data: Path) -> None:
    """The same name with an accent as one character and as two."""
    for split in ("train", "val"):
        for name in ("caf\u00e9", "cafe\u0301"):
            shutil.copytree(next((data / "classification" / split).iterdir()), data / "classification" / split / name)


def three_classes(data: Path) -> None:
    for split in ("train", "val"):
        for folder in sorted((data / "classification" / split).iterdir())[3:]:
            shutil.rmtree(folder)


def too_deep(folder: Path) -> None:
    """Folders within folders, whose path is longer than any that the system opens."""
    inner, name = os.open(folder, os.O_RDONLY), "d" * 250
    for _ in range(20):
        os.mkdir(name, dir_fd=inner)
        outer, inner = inner, os.open(name, os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    os.close(inner)


def annotations(change: Callable[[dict[str, Any]], Any], split: str = "train") -> Callable[[Path], None]:
    def apply(data: Path) -> None:
        file = data / "detection" / "annotations" / f"instances_{split}.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def two_names_for_one_file(content: dict[str, Any]) -> None:
    """Both may stand for the file of the first image, which no image names as it is."""
    first, second = content["images"][:2]
    second["file_name"] = f"b/{first['file_name']}"
    first["file_name"] = f"a/{first['file_name']}"


def without_polygons(content: dict[str, Any]) -> None:
    for each in content["annotations"]:
        del each["segmentation"]


def two_masks(data: Path) -> None:
    """Of one image, neither of them the PNG that would be preferred."""
    mask = first_image(data / "segmentation/annotations/train")
    shutil.copy(mask, mask.with_suffix(".bmp"))
    mask.rename(mask.with_suffix(".tif"))


def without_parent(stage: str) -> str:
    return f"stages.{stage}.model.init=null"


TRAIN = "classification/train"
INSTANCES = "detection/annotations/instances_train.json"
SHAPES = "data.shapes={train_images: 18, val_images: 12, image_size: 48}"
SOURCES = (
    annotated_names, base, class_names, coco_source, files, image_folder, mask_names, mask_pairs, opening, tar_shards,
)  # fmt: skip
SECOND = [
    # pipeline/resolve.py
    Case("recipe cifar10 has no segmentation stage; it has pretrain (classification)", "segment",
         recipe=REPOSITORY / "pipelines/recipes/cifar10.yaml"),
    Case("stage detect: data.train.images: folder", "full", ("data.root=elsewhere",)),
    Case("the smaller images take 500 steps, and the training has", "pretrain",
         ("stages.pretrain.training.image_size_schedule=[{size: 16, steps: 500}]",)),
    Case("the warm-up (500 steps) is not shorter", "pretrain", ("optimizer.schedule.warmup_steps=500",)),
    Case("the categories of the splits differ: only train has 1 (", "detect",
         change=annotations(lambda content: content["categories"][0].update(name="other"), "val")),
    Case("top-5 accuracy is reported only where there are more than five classes; the data has ", "pretrain",
         ("stages.pretrain.promotion.metric=top5",), three_classes),
    Case("of which the batch norm of resnet18 has no statistics", "pretrain",
         ("model.name=resnet18", "cluster.workers=2", "training.global_batch_size=2")),
    Case("a character that has to be encoded", "pretrain", ("tracking.uri=http://me:a/b@host",)),
    Case("is no address", "pretrain", ("tracking.uri='http://[bad'",)),
    Case("names no server", "pretrain", ("tracking.uri=http:///mlflow",)),
    Case("levit_128s does not run at 48 pixels (training.image_size_schedule)", "pretrain",
         ("model.name=levit_128s", "stages.pretrain.training.image_size_schedule=[{size: 48, steps: 2}]",
          "stages.pretrain.data.image_size=224", "stages.pretrain.data.eval_resize=256")),
    Case("levit_128s does not run at the evaluation size", "pretrain", ("model.name=levit_128s",)),
    Case("stage pretrain: model: scalablevit_tiny cannot be built", "pretrain", ("model.options={nonsense: 1}",)),
    Case("stage pretrain: training.compile: regnety_002 has no repeated blocks", "pretrain",
         ("model.name=regnety_002", "training.compile=blocks")),
    # pipeline/init_weights.py, tracking/connection.py
    Case("no such file", "pretrain", ("stages.pretrain.model.init=weights.pth",)),
    Case("there is no file", "pretrain", ("stages.pretrain.model.init=models:/nobody@candidate",)),
    Case("is relative to the current folder", "pretrain", ("tracking.uri='sqlite:///mlflow.db'",)),
    Case("cannot be written to", "pretrain", ("tracking.uri='ftp://host'",)),
    Case("is followed by a query", "pretrain", ("tracking.uri='http://host/?key=value'",)),
    # config/model_names.py
    Case("unknown architecture 'resnet81'", "pretrain", ("model.name=resnet81",)),
    Case("has no maps with strides 4, 8, 16 and 32", "segment", ("stages.segment.model.name=levit_128s",)),
    # data/shapes.py
    Case("exists and was not made by data.shapes", "pretrain", (SHAPES,)),
    Case("the recipe asks for", "pretrain", (SHAPES,),
         lambda data: (shutil.rmtree(data), shapes.write_shapes(Shapes(train_images=9, val_images=9), data))),
    # data/sources, opening.py and files.py: all sources
    Case("cannot list", "pretrain", change=lambda data: too_deep(next((data / TRAIN).iterdir()))),
    Case("does not exist; ", "pretrain", ("stages.pretrain.data.train.images=clasification/train",)),
    Case("is a link that leads out of", "pretrain", change=lambda data: link_away(data, TRAIN)),
    Case("1 links or special files", "pretrain", change=lambda data: link_away(data, str(first_image(data / TRAIN)))),
    # image folders
    Case("holds no class folders", "pretrain", change=lambda data: empty(data / TRAIN)),
    Case("differ: only train has emu", "pretrain", change=lambda data: (data / TRAIN / "emu").mkdir()),
    Case("1 class folders", "pretrain", change=lambda data: empty(next((data / TRAIN).iterdir()))),
    # mask pairs
    Case("no images in", "segment", change=lambda data: empty(data / "segmentation/images/train")),
    Case("differ only in their suffix, and so share a mask", "segment",
         change=lambda data: write(first_image(data / "segmentation/images/train").with_suffix(".gif"), b"")),
    Case("have no mask in", "segment",
         change=lambda data: first_image(data / "segmentation/annotations/train").unlink()),
    Case("have several masks in", "segment", change=two_masks),
    Case("1 masks of", "segment",
         change=lambda data: first_image(data / "segmentation/images/train").unlink()),
    Case("masks need at least 2 classes, not 1 (road)", "segment", ("stages.segment.data.classes=[road]",)),
    Case("no file", "segment", change=lambda data: (data / "segmentation/classes.txt").unlink()),
    Case("is no UTF-8", "segment", change=named("a\nb\xe9\n")),
    Case("line 2 is empty", "segment", change=named("a\n\nb\n")),
    Case("class names are missing", "segment", change=named("")),
    Case("class names are equal up to Unicode form (NFC): ", "pretrain", change=unicode_twins),
    Case("class names occur twice: a", "segment", change=named("a\nb\na\n")),
    Case("characters that cannot be printed", "segment", change=named("a\nb\x07\n")),
    Case("is no plain list of names", "segment", change=named("id, name\n0, sky\n1, road\n")),
    Case("300 classes do not fit into 8-bit masks", "segment", change=named("\n".join(map(str, range(300))))),
    Case("0 is also the mask value of class", "segment", ("stages.segment.data.ignore_index=0",)),
    # COCO
    Case("leads out of", "detect", change=lambda data: link_away(data, INSTANCES)),
    Case("cannot read", "detect", change=lambda data: (data / INSTANCES).unlink()),
    Case("is no JSON", "detect", change=lambda data: write(data / INSTANCES, b"{")),
    Case("has no list images", "detect", change=lambda data: write(data / INSTANCES, b"{}")),
    Case("not four finite numbers", "detect", change=annotations(lambda content: content["annotations"][0].update(
        bbox=[1, 2, float("nan"), 4]))),
    Case("unknown category_id", "detect", change=annotations(lambda content: content["annotations"][0].update(
        category_id=99, image_id=10**9))),
    Case("2 of 18 names (file_name) are of no file in", "detect", change=annotations(two_names_for_one_file)),
    Case("annotations have no mask (segmentation missing", "detect", change=annotations(without_polygons)),
]  # fmt: skip


@pytest.mark.row("Configuration: second gate")
def test_the_second_gate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Recipe, data and model as a script takes them, one after the other in this process."""
    reached, wrong = record(monkeypatch), []
    for number, case in enumerate(SECOND):
        root = tmp_path / str(number)
        shutil.copytree(data, root)
        case.change(root / "data")
        overrides = [*SMALL, without_parent("segment"), without_parent("detect"), *case.overrides]
        if case.recipe != TINY:
            overrides = []
        try:
            recipe = load_recipe(case.recipe, overrides)
            stages = resolve(recipe, root, wanted_stages(recipe, case.script))
            last = stages[-1]
            check_micro_batches(last.name, last.stage, last.classes)
            model_cost(last.name, last.stage, last.classes)
            wrong.append(f"accepted: {case.said}")
        except UserError as error:
            said = str(error)
            if case.said not in said or "\n  fix: " not in said:
                wrong.append(f"{case.said}: {said}")
    assert not wrong, "\n".join(wrong)
    refused_evaluations(data, tmp_path / "evaluated")
    written = written_in(
        second_gate, stage_model, init_weights, connection, model_names, shapes, labels, coco, coco_records, *SOURCES
    )
    # what other scripts than training's list: tests/cli/test_pack.py, tests/serving/test_predict.py
    written -= lines_of(opening.open_class_folders, files.list_images)
    written -= lines_of(connection.check_response)  # of `doctor`: tests/tracking/test_connection.py
    written -= lines_of(second_gate.check_metric)  # of searches: tests/pipeline/test_metric_never_reported.py
    assert len(written) >= 45
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


def refused_evaluations(data: Path, root: Path) -> None:
    """Of a trained model on data with other classes, and on data with two kinds of bad files: both are said."""
    shutil.copytree(data, root)
    recipe = load_recipe(TINY, [*SMALL, without_parent("segment")])
    recipe = recipe.model_copy(update={"stages": {"segment": recipe.stages["segment"]}})
    classes = (root / "data/segmentation/classes.txt").read_text().split()
    with pytest.raises(UserError) as caught:
        resolve_evaluation(recipe, root, [*classes[:-1], "emu"])
    said = str(caught.value)
    assert f"stage segment: data: the data has the classes {', '.join(classes)}; the model has " in said
    assert f"only the data has {classes[-1]}; only the model has emu" in said and "\n  fix: " in said
    write(first_image(root / "data/segmentation/images/val"), b"")
    write(max((root / "data/segmentation/annotations/val").iterdir()), png(np.full((48, 48), 99, np.uint8)))
    with pytest.raises(UserErrors) as several:
        resolve_evaluation(recipe, root, classes)
    masks, images = map(str, several.value.errors)
    assert "stage segment: data.val: 1 of 12 masks do not fit: " in masks and "mask values 99 are no class" in masks
    assert "stage segment: data.val: 1 of 12 samples cannot be read" in images


# --- the third gate: the cluster ---


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of the tests, which connecting to Ray replaces."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def start(connect: Callable[[], None]) -> None:
    """Ray on this machine; it gives a node 30 s, which a busy machine may not keep at the first try."""
    for attempt in range(3):
        try:
            return connect()
        except UserError as error:
            if attempt == 2 or "cannot start Ray on this machine: The current node timed out" not in str(error):
                raise
    return None


def free_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.ray
@pytest.mark.row("Configuration: third gate")
def test_the_third_gate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None):
    shutil.copytree(data, tmp_path / "root")
    stages = resolve(load_recipe(TINY, SMALL), tmp_path / "root", ["pretrain"])
    greedy = resolve(load_recipe(TINY, [*SMALL, "cluster.cpus_per_worker=1000"]), tmp_path / "root")
    reached = record(monkeypatch)

    def said(ask: Callable[[], Any]) -> str:
        with pytest.raises(UserError) as caught:
            ask()
        assert "\n  fix: " in str(caught.value)
        return str(caught.value)

    def connect(address: str | None, wanted: list[ResolvedStage] = stages) -> Callable[[], None]:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if address is not None:
            monkeypatch.setenv("RAY_ADDRESS", address)
        return lambda: cluster.connect(wanted, tmp_path / "root")

    assert "this machine has room for 0 of 1 workers (1 x 1000 = 1000 CPU asked, " in said(connect(None, greedy[:1]))
    assert "stage detect: cluster.workers: this machine has room for 0 of 1" in said(connect(None, greedy))
    for address in ("http://someone:secret@127.0.0.1:8265", "ray://127.0.0.1:10001"):
        message = said(connect(address))
        assert "where jobs are submitted" in message and "secret" not in message
    for address in ("somewhere", "127.0.0.1:", ":6379", "127.0.0.1:66666"):
        assert f"RAY_ADDRESS={address}: is no address of a cluster" in said(connect(address))
    message = said(connect(f"127.0.0.1:{free_port()}"))
    assert (
        "the Ray cluster does not answer: [Errno 111] Connection refused" in message and "unset RAY_ADDRESS" in message
    )

    other = tmp_path / "elsewhere" / "scalablevit"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    with monkeypatch.context() as moved:
        moved.chdir(other.parent)
        assert f"another copy of it is in {other}" in said(lambda: cluster.connect(stages, tmp_path / "root"))

    start(connect(None))
    try:
        assert "cannot connect to the cluster: Maybe you called ray.init twice" in said(connect("local"))
        here = cluster.alive_nodes()
        blind = [replace(stages[0], stage=load_recipe(TINY, ["data.root=nowhere"]).stages["pretrain"])]
        message = said(lambda: cluster._check_reach(blind, tmp_path / "root", here))
        assert f"1 of 1 nodes do not see what is here ({here[0].address})" in message
        assert f"stage pretrain: data.root ({tmp_path / 'root' / 'nowhere'})" in message
        assert "the cluster has no node with 1000 CPU and " in said(lambda: cluster.count_processes(greedy[0].stage))
        short = load_recipe(TINY, ["cluster.cpus_per_worker=1000", "cluster.wait_for_nodes_minutes=0.001"])
        message = said(lambda: cluster._await_room("", short.stages["pretrain"], "1 x big (1000 CPU)"))
        assert "after 0.001 minutes the cluster has room for 0 of " in message and "0 node(s) came" in message
        package = [UserPackage("mine", other, installed=False)]
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(cluster, "_ask_nodes", lambda *_: {here[0].id: {"mine": "f" * 64}})
            assert "1 of 1 nodes have another mine" in said(lambda: cluster.refuse_other_code(package, here))
        monkeypatch.setattr(cluster, "PROBE_S", 0)
        message = said(lambda: cluster.unreadable_on(here, ["/"]))
        assert f"not every node answered within 0 s whether it sees the files ({here[0].address} did not)" in message
    finally:
        cluster.disconnect()
    written = written_in(cluster)
    assert len(written) >= 8
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


REFUSED_STORAGE = [
    ((403, "InvalidAccessKeyId"), "the object store does not know the access key (writing a small file: INVALID"),
    ((403, "SignatureDoesNotMatch"), "the object store refuses the secret of the access key"),
    ((404, "NoSuchBucket"), "there is no such bucket"),
    ((403, "AccessDenied"), "the object store does not permit it with this access key, or without one"),
    ((400, "EntityTooSmall"), "writing a small file there fails: "),
]


@pytest.mark.row("Configuration: third gate")
def test_the_third_gate_of_run_storage(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An object store that refuses, or is not there, stops the job before workers start; its secret is not shown."""
    stages = resolve(load_recipe(TINY, [*SMALL, "cluster.storage=s3://bucket/folder"]), data, ["pretrain"])
    reached = record(monkeypatch)

    def said(store: ObjectStore) -> str:
        store.use(monkeypatch)
        with pytest.raises(UserError) as caught:
            cluster._check_nodes(stages, tmp_path, [Node("", {"CPU": 2.0}, "this machine")])
        message = str(caught.value)
        assert message.startswith("cluster.storage (s3://bucket/folder): ") and "\n  fix: " in message, message
        assert "-is-secret" not in message, message
        return message

    for answer, expected in REFUSED_STORAGE:
        with refusing(*answer) as store:
            assert expected in said(store)
    message = said(ObjectStore(f"http://127.0.0.1:{free_port()}"))
    assert "the object store does not answer (writing a small file: NETWORK_CONNECTION)" in message
    assert written_in(storage) <= reached, f"no case reaches {sorted(written_in(storage) - reached)}"
