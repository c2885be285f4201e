"""Statistics of a stage's data on their way: plan, run folder, MLflow's records and the report."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from harness.html_page import HtmlPage

from scalablevit.config.loading import load_recipe
from scalablevit.data.statistics import DataStatistics
from scalablevit.jobs import announce, resolve
from scalablevit.jobs.report import gather
from scalablevit.jobs.resolve import ResolvedStage, deadline_of
from scalablevit.jobs.run_store import RunStore
from scalablevit.jobs.stage import STATISTICS, Job, _begin
from scalablevit.report.page import render
from scalablevit.tracking.spool import Spool, read_lines

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
    spool = Spool(store.local / "spool")
    _begin(Job(root, "tiny", "2" * 32, "sqlite://"), pretrain, None, store, spool, "1" * 32)
    spool.close()
    kept = DataStatistics.from_json((store.local / STATISTICS).read_bytes())
    assert kept == pretrain.statistics
    assert kept.train.samples_by_class == (3,) * 6 and kept.val.samples_by_class == (2,) * 6
    records = [line.record for line in read_lines(store.local / "spool")]
    assert STATISTICS in json.dumps([each for each in records if each["kind"] == "artifact"])
    page = render(gather(store.local))
    assert '<th scope="row">images of circle</th><td class="count">3</td><td class="count">2</td>' in page
    assert "0 of 12" in page and HtmlPage(page).headings().count(1) == 1
    for damaged in ("{", None):  # a run of an earlier version has none
        file = store.local / STATISTICS
        file.unlink() if damaged is None else file.write_text(damaged)
        assert "images of circle" not in render(gather(store.local))


def test_the_plan_shows_them_shorter_with_the_warnings(pretrain, root, capsys, monkeypatch):
    monkeypatch.setattr(announce, "SHORT", 3)
    monkeypatch.setattr(announce, "check_micro_batches", lambda *_: None)
    monkeypatch.setattr(announce, "model_cost", lambda *_: "")
    unknown = replace(pretrain.statistics, unknown=("files of 3 of 18 images of train were looked at",))
    announce.announce("tiny", [replace(pretrain, statistics=unknown, warnings=("train: 3 things",))], root)
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("  statistics")
    assert [line.split() for line in lines[at + 1 : at + 8]] == [
        ["training", "validation"],
        ["images", "18", "12"],
        *(["images", "of", name, "3", "2"] for name in ("circle", "cross", "ring")),
        ["...", "and", "3", "more", "9", "6"],
        ["also", "in", "training", "0", "of", "12"],
    ]
    assert (
        "  not yet known files of 3 of 18 images of train were looked at; pipelines/check_data.py looks at all" in lines
    )
    assert "  warning       train: 3 things" in lines


def test_only_a_dry_run_has_a_deadline_for_its_look_at_the_data(root):
    assert deadline_of(dry_run=False) is None
    deadline = deadline_of(dry_run=True)
    assert deadline is not None and 0 < deadline - time.monotonic() <= 10
    recipe = load_recipe(TINY, [*SMALL, "data.max_pixels=1000000"])  # not what another test has looked at
    late, later = resolve.resolve(recipe, root, ["pretrain"], time.monotonic() - 1), resolve.resolve(recipe, root)
    assert late[0].statistics.unknown and not later[0].statistics.unknown
    assert late[0].hash == later[0].hash
