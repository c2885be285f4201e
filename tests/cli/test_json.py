"""With `--json` standard output is one document of a known shape, and all that people read is elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.finished_runs import one_thread, root
from harness.toys import RECIPE, leave_status, val_images

from scalablevit.cli import main
from scalablevit.cli.documents import DOCUMENTS
from scalablevit.config.loading import load_recipe
from scalablevit.config.shipped import RECIPES, shipped_files
from scalablevit.pipeline.resolve import resolve
from scalablevit.runs.status import Best
from scalablevit.tracking.outbox import Outbox

__all__ = ["one_thread", "root"]
SHAPES = {each.schema_name: each for each in DOCUMENTS}
TINY = ["--recipe", str(RECIPE), "data.shapes=null", "data.root=data", "cluster.workers=1"]

Ask = Callable[..., Any]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command with `--json`, and give its document, which must have the shape that its schema names."""

    def ask(verb: str, *arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        assert main(verb, [*arguments, "--json"]) == code
        document = json.loads(capsys.readouterr().out)
        assert list(document)[:2] == ["schema", "version"]
        shape = SHAPES[document["schema"]]
        assert document["version"] == shape.version
        shape.model_validate({key: value for key, value in document.items() if key not in ("schema", "version")})
        return document

    return ask


def test_no_two_documents_have_one_schema() -> None:
    assert len(SHAPES) == len(DOCUMENTS)


def test_runs_are_listed_and_shown(ask: Ask, tmp_path: Path) -> None:
    for name, changes in (("old", {"started": 1.0}), ("new", {"started": 2.0, "best": Best("val/top1", 0.5, 9)})):
        (tmp_path / "runs" / name).mkdir(parents=True)
        leave_status(tmp_path / "runs" / name, **changes)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "status.json").write_text("{")
    listed = ask("runs", "list", "--root", str(tmp_path))
    assert [(run["run"], run["state"]) for run in listed["runs"]] == [("new", "finished"), ("old", "finished")]
    assert listed["runs"][0]["best"] == {"metric": "val/top1", "value": 0.5, "step": 9}
    assert "not readable" in listed["unreadable"]["damaged"]
    shown = ask("runs", "show", "new", "--root", str(tmp_path))
    assert shown["run"] == listed["runs"][0] and shown["files"] == ["status.json"]


def test_recipes_are_listed(ask: Ask) -> None:
    listed = ask("recipe", "list")
    assert [each["name"] for each in listed["recipes"]] == list(shipped_files(RECIPES))
    assert all(each["summary"] and Path(each["file"]).is_file() for each in listed["recipes"] + listed["spaces"])


def test_data_is_checked(ask: Ask, root: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    checked = ask("check-data", *TINY, "--quick", "--root", str(tmp_path))
    assert (checked["recipe"], checked["bad"]) == ("tiny", 0)
    assert [each["stage"] for each in checked["data"]] == ["pretrain", "segment", "detect"]
    first = checked["data"][0]
    assert {split: each["samples"] for split, each in first["splits"].items()} == {"train": 18, "val": 12}
    assert first["statistics"]["train"]["samples_by_class"] == [3] * 6


def test_a_dry_run_is_a_plan(ask: Ask, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").symlink_to(root / "data")
    plan = ask("full", *TINY, "--dry-run", "--root", str(tmp_path), "tracking.uri=http://me:canary-4711@mlflow.example")
    assert "canary" not in json.dumps(plan)
    resolved = resolve(load_recipe(RECIPE, TINY[2:]), tmp_path)
    assert [each["run"] for each in plan["stages"]] == [each.run_name for each in resolved]
    assert [each["steps"] for each in plan["stages"]] == [each.length.total for each in resolved]
    assert plan["stages"][1]["starts_from"] == "the best weights of stage pretrain"
    assert main("full", [*TINY, "--json", "--root", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "add --dry-run" in said.err


def test_a_training_is_predicted(ask: Ask, root: Path) -> None:
    given = ["--recipe", str(RECIPE), "--stage", "pretrain", "--root", str(root), "--step-s", "0.5"]
    plan = ask("plan", *given)
    assert (plan["stage"], plan["given"]["step_s"]) == ("pretrain", 0.5)
    assert plan["prediction"]["hours"] > 0 and plan["memory_bytes"]["total"] > 0


def test_an_evaluation_says_on_what(ask: Ask, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = ask("evaluate", "toy-pretrain-0", "--dry-run", "--root", str(root))
    assert (found["task"], found["samples"], found["metrics"]) == ("classification", 12, None)
    assert len(found["weights_sha256"]) == 64 and len(found["classes"]) == 6
    for taken in ("data.root=data", "models:/toy/1"):
        with pytest.raises(SystemExit):
            main("evaluate", ["toy-pretrain-0", "--json", taken])
        assert "write `--json` last, or `--json -`" in capsys.readouterr().err
    for file, said in (
        (root / "nothing" / "m.json", "no folder"),
        (root, "is a folder\n  fix: name a file in it"),
        (root / ("x" * 300), "File name too long"),
    ):
        assert main("evaluate", ["toy-pretrain-0", "--root", str(root), "--json", str(file)]) == 2
        assert said in capsys.readouterr().err


def test_images_are_predicted(ask: Ask, root: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in sorted(val_images(root, "segment").iterdir())[:2]:
        (images / file.name).write_bytes(file.read_bytes())
    (images / "broken.jpg").write_bytes(b"x")
    (images / "notes.txt").write_text("x")
    given = ["toy-segment-0", str(images), "--out", str(tmp_path / "out"), "--root", str(root)]
    planned = ask("predict", *given, "--dry-run")
    assert (planned["folder"], planned["images"]) == (str(tmp_path / "out"), None)
    done = ask("predict", *given, code=1)
    assert (done["images"], done["bad"], done["left_out"]) == (3, 1, 1)


def test_an_outbox_is_sent(ask: Ask, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "runs" / "one" / "outbox")
    outbox.run("1" * 32, "one", experiment="e")
    outbox.artifact("1" * 32, tmp_path / "never-was")
    outbox.end("1" * 32, "FINISHED")
    outbox.close()
    waiting = ask("sync", "--dry-run", "--root", str(tmp_path))
    assert waiting["sent"] is False and [(each["run"], each["left"]) for each in waiting["runs"]] == [("one", 3)]
    sent = ask("sync", "--root", str(tmp_path))
    (run,) = sent["runs"]
    assert (sent["sent"], run["left"], run["error"], run["without_end"]) == (True, 0, "", 0)
    assert [line for line in run["refused"] if "never-was" in line] == run["refused"] != []


def test_a_report_is_made(ask: Ask, root: Path) -> None:
    from harness.job_folder import SEARCH, write_search

    write_search(root / "runs" / SEARCH)
    made = ask("report", SEARCH, "--root", str(root))
    assert made["searches"] == [{"name": SEARCH, "trials": 3}] and made["stages"] == []
    assert Path(made["file"]).is_file()


def test_without_it_nothing_is_a_document(capsys: pytest.CaptureFixture[str], root: Path) -> None:
    assert main("evaluate", ["toy-pretrain-0", "--dry-run", "--root", str(root)]) == 0
    said = capsys.readouterr()
    assert "dry run: nothing was started" in said.out and "schema" not in said.out
