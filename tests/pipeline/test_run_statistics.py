"""Statistics of a stage's data on their way: plan, run folder, MLflow's records and the report."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from harness.html_page import HtmlPage

from scalablevit.cli import main
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.inspection.inspect_data import inspect_data
from scalablevit.inspection.statistics import DataStatistics
from scalablevit.pipeline import plan_summary, resolve
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.stage import Job, _begin
from scalablevit.report.collect import gather
from scalablevit.report.page import render
from scalablevit.run_files import STATISTICS
from scalablevit.runs.run_store import RunStore
from scalablevit.tracking.outbox import Outbox, read_lines

TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"
SMALL = ["data.shapes={train_images: 18, val_images: 12, image_size: 48}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def pretrain(root: Path) -> ResolvedStage:
    return resolve.resolve(load_recipe(TINY, SMALL), root, ["pretrain"])[0]


def test_the_run_folder_and_mlflow_get_the_statistics_and_the_report_shows_them(pretrain, root):
    store = RunStore.open("run", None, root)
    outbox = Outbox(store.outbox)
    _begin(Job(root, "tiny", "2" * 32, "sqlite://"), pretrain, None, store, outbox, "1" * 32)
    outbox.close()
    kept = DataStatistics.from_json((store.local / STATISTICS).read_bytes())
    assert kept == pretrain.statistics
    assert kept.train.samples_by_class == (3,) * 6 and kept.val.samples_by_class == (2,) * 6
    records = [line.record for line in read_lines(store.outbox)]
    assert STATISTICS in json.dumps([each.path for each in records if each.kind == "artifact"])
    page = render(gather(store.local))
    assert '<th scope="row">images of circle</th><td class="count">3</td><td class="count">2</td>' in page
    assert "0 of 12" in page and HtmlPage(page).headings().count(1) == 1
    for damaged in ("{", None):  # a run of an earlier version has none
        file = store.local / STATISTICS
        file.unlink() if damaged is None else file.write_text(damaged)
        assert "images of circle" not in render(gather(store.local))


def test_the_plan_shows_them_shorter_with_the_warnings(pretrain, root, capsys, monkeypatch):
    monkeypatch.setattr(plan_summary, "SHOWN_CLASSES", 3)
    monkeypatch.setattr(plan_summary, "check_micro_batches", lambda *_: None)
    monkeypatch.setattr(plan_summary, "model_cost", lambda *_: "")
    unknown = replace(pretrain.statistics, unknown=("files of 3 of 18 images of train were looked at",))
    plan_summary.print_plan("tiny", [replace(pretrain, statistics=unknown, warnings=("train: 3 things",))], root)
    lines = capsys.readouterr().out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith("  statistics "))
    assert [line.split() for line in lines[at : at + 6]] == [
        ["statistics", "training", "validation"],
        *(["images", "of", name, "3", "2"] for name in ("circle", "cross", "ring")),
        ["...", "and", "3", "more", "9", "6"],
        ["also", "in", "training", "0", "of", "12"],
    ]
    assert (
        "  not yet known files of 3 of 18 images of train were looked at; pipelines/check_data.py looks at all" in lines
    )
    assert "  warning       train: 3 things" in lines


def test_all_stages_together_have_the_time_of_a_dry_run(root, monkeypatch):
    given = []

    def look(data, root, threads, *, cache, seconds):
        given.append(seconds)
        return replace(inspect_data(data, root, threads, cache=cache, seconds=seconds), seconds=6.0)

    monkeypatch.setattr(resolve, "inspect_data", look)
    recipe = load_recipe(TINY, [*SMALL, "data.max_pixels=1000000"])  # not what another test has looked at
    late = resolve.resolve(recipe, root, seconds=10.0)
    assert given == [10.0, 4.0, 0.0] and late[2].statistics.unknown
    monkeypatch.undo()
    whole = resolve.resolve(recipe, root)
    assert [stage.hash for stage in late] == [*(stage.hash for stage in whole[:2]), "unknown"]
    assert not any(stage.statistics.unknown for stage in whole)


def test_only_a_dry_run_is_short_of_time(root, monkeypatch, capsys):
    given = []

    def ended(_recipe, _root, _wanted, seconds):
        given.append(seconds)
        raise UserError("enough")

    monkeypatch.setattr(resolve, "resolve", ended)
    for arguments in ([], ["--dry-run"]):
        assert main("full", ["--recipe", str(TINY), "--root", str(root), *arguments]) == 2
    assert given == [None, 10.0] and "enough" in capsys.readouterr().err
