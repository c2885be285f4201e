"""The example package: a task, a source and a backbone of its own, from its recipe to a registered model.

Ray's part is a worker in this process; tests/end_to_end/test_users_code.py goes through Ray.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from harness.user_code import EXAMPLE, packages_in, write_tag_data
from ray.train import UserCallback

import scalablevit as sv
from scalablevit.cli import predict, promote
from scalablevit.cli.promote import _refuse_different_code
from scalablevit.cli.recipe import _mistakes
from scalablevit.cli.tree import main, parse
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_and_import, load_recipe, read_mapping
from scalablevit.config.root import tracking_uri
from scalablevit.config.space import search_hash
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_stage
from scalablevit.config.user_code import package_sums
from scalablevit.pipeline.plots import ERROR_ANALYSIS
from scalablevit.pipeline.resolve import resolve
from scalablevit.pipeline.stage import Job, run_stage
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.report.findings import load_findings
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.tracking import tags
from scalablevit.training import launch, worker

RECIPE, SPACE = EXAMPLE / "tags.yaml", EXAMPLE / "space.yaml"
TAGS = ("circle", "cross", "ring", "square", "star", "triangle")


def launch_here(stage, worker_config, run_folder, callbacks, stop_file):
    """Ray's part: calls the worker, and the callbacks with what it reports."""

    def send(records, node):
        for callback in (each for each in callbacks if isinstance(each, UserCallback)):
            reported = {"records": [record.as_dict() for record in records], "node": {"rank": 0, **node}}
            callback.after_report(None, [reported], None)

    result = worker.run(worker_config, 0, 1, torch.device("cpu"), send)
    assert result.error is None, result
    return result


@pytest.fixture(scope="module")
def example():
    with packages_in(EXAMPLE):
        yield load_and_import(RECIPE)


@pytest.fixture(scope="module")
def trained(example, tmp_path_factory):
    """The recipe, run to its registered model."""
    root = tmp_path_factory.mktemp("tags")
    write_tag_data(root)
    (resolved,) = resolve(example, root)
    uri = tracking_uri(None, root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "launch", launch_here)
        with RunSession(RunStore.open("tags-job", None, root), uri) as session:
            session.outbox.run("1" * 32, "tags-job", experiment="scalablevit")
            session.drain()
        result = run_stage(Job(root, "tags", "1" * 32, uri), resolved, {})
    torch.set_num_threads(threads)
    assert result.version == "1", result.tracking
    return SimpleNamespace(root=root, resolved=resolved, result=result, folder=root / "runs" / resolved.run_name)


def test_without_its_package_the_recipe_is_read_but_not_understood():
    with pytest.raises(UserErrors) as caught:
        load_recipe(RECIPE)
    assert "got 'tagging'" in str(caught.value) and "got 'tag_table'" in str(caught.value)
    with pytest.raises(UserError, match="there is no package image_tags"):
        load_and_import(RECIPE)


def test_its_recipe_is_upgraded_without_its_package():
    assert _mistakes(RECIPE) == []


def test_editors_know_its_keys_when_its_package_is_named(capsys):
    content = json.loads(json.dumps(read_mapping(RECIPE, "recipe")[0]))

    def marked() -> list[str]:
        schema = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
        assert list(schema.iter_errors({**content, "task": {"kind": "tagging", "threshhold": 0.5}}))
        return [error.message for error in schema.iter_errors(content)]

    assert main("recipe", ["schema"]) == 0
    assert marked()
    with packages_in(EXAMPLE):
        assert main("recipe", ["schema", "--imports", "image_tags"]) == 0
        assert marked() == []


def test_a_new_recipe_names_the_package_that_its_schema_knows(tmp_path):
    file = tmp_path / "my.yaml"
    with packages_in(EXAMPLE):
        assert main("recipe", ["new", "pretrain", str(file), "--imports", "image_tags"]) == 0
        assert load_recipe(file).stages["pretrain"].imports == ("image_tags",)
    assert '"tagging"' in (tmp_path / "recipe.schema.json").read_text()
    with pytest.raises(SystemExit):
        main("recipe", ["schema", "--imports", "os"])


def test_its_keys_are_checked_as_ours_are(example):
    with pytest.raises(UserError, match="unknown key 'threshhold'; did you mean 'threshold'"):
        load_and_import(RECIPE, ["task.threshhold=0.3"])
    with pytest.raises(UserError, match="should be less than 1, got 2"):
        load_and_import(RECIPE, ["task.threshold=2"])
    with pytest.raises(UserError, match=r"task tagging needs data.source tag_table, not image_folder"):
        load_and_import(RECIPE, ["data={source: image_folder, root: d, train: {images: a}, val: {images: b}}"])
    with pytest.raises(UserError, match=r"task.kind tagging is defined by image_tags: name it in this stage's imports"):
        load_and_import(RECIPE, ["imports=[]"])
    with pytest.raises(UserError, match=r"promotion.metric must be f1 here, not top1"):
        load_and_import(RECIPE, ["promotion.metric=top1"])
    stage = load_and_import(RECIPE, ["promotion.metric=f1", "task.threshold=0.3"]).stages["tag"]
    assert (stage.task.threshold, stage.promotion.metric) == (0.3, "f1")


def test_an_architecture_that_nobody_registered_is_refused_after_the_import(example, tmp_path):
    write_tag_data(tmp_path)
    with pytest.raises(UserError, match=r"unknown architecture 'tag_nett'(?s:.*)tag_net"):
        resolve(load_and_import(RECIPE, ["model.name=tag_nett"]), tmp_path)


def test_its_source_counts_every_tag(trained):
    source, statistics = trained.resolved.sources["val"], trained.resolved.statistics
    lines = (trained.root / "tag-data" / "val.csv").read_text().splitlines()
    assert len(source) == 8 and trained.resolved.classes == TAGS
    example = source.read(0)
    assert example.image.shape == (32, 32, 3)
    assert [tag for tag, on in zip(TAGS, example.label, strict=True) if on] == lines[0].split(",")[1:]
    assert statistics.val.samples_by_class == tuple(sum(tag in line.split(",") for line in lines) for tag in TAGS)
    turned = source.with_classes(TAGS[::-1])
    assert turned.read(0).label.tolist() == example.label.tolist()[::-1]
    assert turned.digest() != source.digest()


def test_the_stage_trains_is_evaluated_and_drawn(trained):
    result = trained.result
    assert result.metric == "val/f1" and result.step in (6, 12) and 0 <= result.value <= 1
    assert {f"val/recall/{tag}" for tag in TAGS} <= set(result.metrics)
    assert {path.name for path in (trained.folder / "plots").iterdir()} == {
        "curves.png", "training_batch.png", "validation.png",
    }  # fmt: skip
    assert load_findings(trained.folder / ERROR_ANALYSIS).images == 8
    assert run_stage(
        Job(trained.root, "tags", "1" * 32, tracking_uri(None, trained.root)), trained.resolved, {}
    ).skipped


def test_the_registered_version_names_its_code_and_has_it_with_it(trained):
    import mlflow

    client = mlflow.MlflowClient(tracking_uri(None, trained.root))
    version = client.get_model_version_by_alias("tags-tag", "candidate")
    sums = package_sums(["image_tags"])
    assert json.loads(version.tags[tags.USER_CODE]) == sums
    assert json.loads(client.get_run(version.run_id).data.tags[tags.USER_CODE]) == sums
    config = json.loads((trained.folder / "model" / "config.json").read_text())
    assert config["user_code"] == sums and config["stage"]["imports"] == ["image_tags"]
    code = Path(version.source.removeprefix("file://")) / "code"
    assert sorted(path.name for path in code.iterdir()) == ["image_tags", "scalablevit.zip"]
    names = sorted(path.name for path in (EXAMPLE / "image_tags").glob("*.py"))
    assert sorted(path.name for path in (code / "image_tags").glob("*.py")) == names


def test_a_version_predicts_where_its_code_is(trained):
    model = sv.load_model("models:/tags-tag@candidate", root=trained.root)
    image = np.full((40, 50, 3), 90, np.uint8)
    (prediction,) = model.predict(image)
    assert prediction.classes == TAGS and prediction.probabilities.shape == (6,)
    with pytest.raises(UserError, match="the weights are of the network"):
        sv.load_model("models:/tags-tag@candidate", "imports=[]", root=trained.root)


def test_a_version_is_promoted_by_its_own_metric_and_predicts_a_folder(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    root, images = ["--root", str(trained.root)], trained.root / "tag-data" / "images" / "val"
    assert promote.run(parse("promote", ["tags-tag", *root])) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^f1 +{trained.result.value:.4f}$", said, re.MULTILINE), said
    assert "promoted against the limits alone" in said
    predictions = tmp_path / "predictions"
    assert (
        predict.run(parse("predict", ["models:/tags-tag@champion", str(images), "--out", str(predictions), *root])) == 0
    )
    rows = list(csv.DictReader((predictions / "tags.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == sorted(path.name for path in images.iterdir())
    model = sv.load_model("models:/tags-tag@champion", root=trained.root)
    assert [row["tags"].split() for row in rows] == [each.tags for each in model.predict(sorted(images.iterdir()))]


def test_a_version_is_refused_where_its_code_is_another(trained, tmp_path, monkeypatch):
    """Neither the code here nor that in the registry runs for it."""
    expected = package_sums(["image_tags"])["image_tags"]
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(EXAMPLE)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "image_tags"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="there is no package image_tags"):
        sv.load_model("models:/tags-tag/1", root=trained.root)
    shutil.copytree(EXAMPLE / "image_tags", tmp_path / "image_tags")
    with (tmp_path / "image_tags" / "task.py").open("a") as file:
        file.write("# another\n")
    with packages_in(tmp_path):
        found = package_sums(["image_tags"])["image_tags"]
        said = (
            f"made by image_tags with the content sum {expected[:12]}, and {tmp_path / 'image_tags'} has {found[:12]}"
        )
        with pytest.raises(UserError, match=said):
            sv.load_model("models:/tags-tag/1", root=trained.root)
        with pytest.raises(UserError, match=said):
            trained_recipe("evaluate", find_model(trained.folder.name, [], trained.root)[1], [], "a run")
    assert "image_tags" not in sys.modules


def test_versions_of_different_code_are_not_compared(monkeypatch):
    def made_by(digest: str) -> SimpleNamespace:
        return SimpleNamespace(name="tags-tag", config={"user_code": {"image_tags": digest}})

    _refuse_different_code([made_by("a" * 64), made_by("a" * 64)])
    _refuse_different_code([made_by("a" * 64), SimpleNamespace(name="tags-tag", config={})])
    with pytest.raises(UserError, match=r"different image_tags \(content sums a{12} and b{12}\)"):
        _refuse_different_code([made_by("a" * 64), made_by("b" * 64)])
    here = SimpleNamespace(digest="a" * 64, portable_sum="b" * 64)  # earlier releases stored the sum of a build
    monkeypatch.setattr(promote, "package_contents", lambda names: dict.fromkeys(names, here))
    _refuse_different_code([made_by("a" * 64), made_by("b" * 64)])
    with pytest.raises(UserError, match="different image_tags"):
        _refuse_different_code([made_by("a" * 64), made_by("c" * 64)])


def test_mlflow_serves_the_archives_own_copy(trained):
    """A process that has neither this platform's tree nor the example on its path."""
    script = (
        "import sys, mlflow, pandas as pd\nfrom pathlib import Path\n"
        "mlflow.set_tracking_uri(sys.argv[2])\n"
        "model = mlflow.pyfunc.load_model('models:/tags-tag/1')\n"
        "import image_tags\n"
        "table = model.predict(pd.DataFrame({'image': [Path(sys.argv[1]).read_bytes()]}))\n"
        "print(Path(image_tags.__file__).parent.parent.name, sorted(table.columns))"
    )
    image = next((trained.root / "tag-data" / "images" / "val").iterdir())
    found = subprocess.run(
        [sys.executable, "-c", script, str(image), tracking_uri(None, trained.root)],
        check=False, capture_output=True, text=True, timeout=240, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "code ['probabilities', 'tags']"


def test_its_metric_can_be_searched_by(example):
    search = load_search(SPACE, ["space.budget.epochs=1"], imports=True)
    assert (search.space.metric, search.stage) == ("val/f1", "tag")
    assert trial_stage(search, {"optimizer.lr": 0.001}).imports == ("image_tags",)
    assert search_hash(search, "data") != search_hash(load_search(SPACE, ["optimizer.lr=1"], imports=True), "data")
    with pytest.raises(UserError, match="task tagging reports no 'val/top1'; did you mean"):
        load_search(SPACE, ["space.metric=val/top1"], imports=True)


def test_the_platform_does_not_know_the_example():
    known = [path for path in Path(sv.__file__).parent.rglob("*.py") if "tagging" in path.read_text(encoding="utf-8")]
    assert known == []
