"""`sv.run` without a cluster: what it hands on, what it refuses, and how it leaves the process."""

import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
import ray
from harness.heads import TINY
from harness.toys import RECIPE

import scalablevit as sv
from scalablevit.api import running as api_running
from scalablevit.cli import tree
from scalablevit.pipeline import chain, cluster
from scalablevit.pipeline import search as pipeline_search
from scalablevit.runs.result import load_result
from scalablevit.runs.run_store import RunStore
from scalablevit.tuning.trials import Trial, load_trials, save_list, write_result

ON_TOYS = ("data.shapes=null", "data.root=data")
"""Overrides that let the tiny recipe read the toys' data."""


class FakeCluster:
    """In place of Ray: notes what would have happened."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.failure: BaseException | None = None

    def connect(self, *_arguments: object, **_options: object) -> None:
        self.events.append("connected")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray leaves a handler of its own

    def disconnect(self) -> None:
        self.events.append("disconnected")

    def run_chain(self, recipe, stages, root, origins):
        self.events.append([stage.name for stage in stages])
        if self.failure is not None:
            raise self.failure
        done = load_result(RunStore.at("toy-pretrain-0", None, root))
        return [replace(done, name=stage.name, version="7", tracking="all sent") for stage in stages]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(cluster, "connect", fake.connect)
    monkeypatch.setattr(cluster, "disconnect", fake.disconnect)
    monkeypatch.setattr(chain, "run_chain", fake.run_chain)
    return fake


@pytest.fixture
def recipe() -> sv.Recipe:
    return sv.load_recipe(str(RECIPE), *ON_TOYS)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_results_come_by_stage(fake, recipe, root):
    results = sv.run(recipe, root=root)
    assert fake.events == ["connected", ["pretrain", "segment", "detect"], "disconnected"]
    assert [stage.name for stage in results] == ["pretrain", "segment", "detect"] and len(results) == 3
    stage = results["segment"]
    assert (stage.metric, stage.value, stage.metrics) == ("val/top1", 0.5, {"val/top1": 0.5})
    assert (stage.registered_as, stage.version, stage.tracking) == ("toy-pretrain", "7", "all sent")
    assert stage.run_folder == root / "runs" / "toy-pretrain-0" and stage.skipped
    assert sv.load_model(stage.run_folder).task == "classification"
    with pytest.raises(KeyError, match="no stage 'segmet' was run; there are pretrain, segment, detect"):
        results["segmet"]


@pytest.mark.parametrize("stages", ["detect", ["detect"]])
def test_named_stages_run_after_those_that_they_start_from(fake, recipe, root, stages):
    assert len(sv.run(recipe, root=root, stages=stages)) == 2
    assert fake.events[1] == ["pretrain", "detect"]


@pytest.mark.parametrize(("stages", "expected"), [("pretain", "no stage 'pretain'"), ([], "no stage is named")])
def test_an_unknown_stage_is_refused_with_the_known_ones(fake, recipe, root, stages, expected):
    with pytest.raises(sv.UserError, match=rf"stages: {expected}[^\n]*\n.*pretrain, segment, detect"):
        sv.run(recipe, root=root, stages=stages)
    assert fake.events == []


def test_a_file_in_place_of_a_recipe_is_refused(fake):
    with pytest.raises(sv.UserError, match=r"recipe: is a str[\s\S]*load_recipe"):
        sv.run("my.yaml")
    with pytest.raises(sv.UserError, match=r"overrides: is a list[\s\S]*one after another"):
        sv.load_recipe("demo", ["training.epochs=3"])
    assert fake.events == []


def test_a_dry_run_prints_what_the_command_prints(fake, recipe, root, capsys):
    assert len(sv.run(recipe, root=root, dry_run=True)) == 0
    plan = capsys.readouterr().out
    assert tree.main("full", ["--recipe", str(TINY), "--root", str(root), "--dry-run", *ON_TOYS]) == 0
    printed = capsys.readouterr().out
    assert plan and printed.startswith(plan) and printed.endswith("dry run: nothing was started\n")
    assert fake.events == []


def test_a_failure_leaves_ray_and_the_handlers_as_they_were(fake, recipe, root):
    before, fake.failure = handlers(), sv.TrainingFailed("folder", "a worker died")
    with pytest.raises(sv.TrainingFailed, match="a worker died"):
        sv.run(recipe, root=root, stages="pretrain")
    assert fake.events[-1] == "disconnected" and handlers() == before


def test_after_an_interrupt_the_next_call_works(fake, recipe, root, monkeypatch):
    before = handlers()

    def interrupted(*_arguments):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(chain, "run_chain", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sv.run(recipe, root=root, stages="pretrain")
    assert fake.events == ["connected", "disconnected"] and handlers() == before
    assert len(sv.run(recipe, root=root, stages="pretrain")) == 1
    assert handlers() == before


def test_outside_the_main_thread_signals_are_left_alone(fake, recipe, root, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda *_arguments, **_options: None)
    before, results, seen = handlers(), [], []
    run_chain = fake.run_chain
    monkeypatch.setattr(chain, "run_chain", lambda *given: seen.append(handlers()) or run_chain(*given))
    thread = threading.Thread(target=lambda: results.append(sv.run(recipe, root=root, stages="pretrain")))
    thread.start()
    thread.join(200)
    assert [len(each) for each in results] == [1] and seen == [before]


def test_a_process_that_is_connected_already_is_told_what_to_do(fake, recipe, root, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(sv.UserError, match=r"already connected to Ray[^\n]*\n.*ray\.shutdown\(\) first"):
        sv.run(recipe, root=root)
    assert fake.events == []
    assert len(sv.run(recipe, root=root, stages="pretrain", dry_run=True)) == 0


def test_the_search_of_a_recipe_is_found_from_any_folder(fake, root, tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    text = RECIPE.read_text().replace("name: tiny\n", "name: tiny\ntune: space.yaml\n")
    (tmp_path / "recipes" / "tiny.yaml").write_text(text)
    (tmp_path / "recipes" / "space.yaml").write_text(
        "stage: pretrain\nparameters: {optimizer.lr: {choice: [1e-3, 2e-3]}}\nsearcher: grid\nmetric: val/top1\n"
    )
    monkeypatch.chdir(tmp_path)
    recipe = sv.load_recipe("recipes/tiny.yaml", *ON_TOYS)
    searches = []
    monkeypatch.setattr(api_running, "train", lambda recipe, search, *_others: searches.append(search) or (None, []))
    monkeypatch.chdir(root)
    sv.run(recipe, root=root)
    sv.run(recipe, root=root, stages="pretrain")
    assert [search and search.stage for search in searches] == ["pretrain", None]


def test_the_results_of_a_search_are_those_of_its_stored_trials(fake, root, tmp_path, monkeypatch):
    place = shutil.copytree(root, tmp_path / "root")
    (tmp_path / "space.yaml").write_text(
        "stage: pretrain\nparameters: {optimizer.lr: {choice: [1e-3, 2e-3, 3e-3]}}\nsearcher: grid\nmetric: val/top1\n"
    )
    trials = [
        Trial(0, {"optimizer.lr": 1e-3}, "stopped", curve={4: 0.5}),
        Trial(1, {"optimizer.lr": 2e-3}, "finished", curve={4: 0.75, 8: 0.625}),
        Trial(2, {"optimizer.lr": 3e-3}, "failed", "diverged", curve={4: 0.875}),
    ]

    def search_stage(search, stages, root, *, retrain):
        store = RunStore.open(pipeline_search.search_name(search, stages[-1]), None, root)
        save_list(store.location, trials)
        for trial in trials:
            write_result(store.location, trial)
        return pipeline_search._search_result(search, store, "0" * 32, load_trials(store.location))

    monkeypatch.setattr(pipeline_search, "search_stage", search_stage)
    recipe = sv.load_recipe(str(RECIPE), *ON_TOYS, f"tune={tmp_path / 'space.yaml'}")
    results = sv.run(recipe, root=place)
    assert len(results) == 3 and results.search is not None
    (folder,) = (place / "runs").glob("tiny-pretrain-search-*")
    assert results.search == sv.FinishedSearch(
        stage="pretrain", metric="val/top1", mode="max", value=0.75, step=4, values={"optimizer.lr": 2e-3}, trial=1,
        trials=3, run_folder=folder,
    )  # fmt: skip
    assert sv.run(recipe, root=place, stages="pretrain").search is None
    assert sv.run(recipe, root=place, dry_run=True).search is None


def test_wrong_overrides_of_a_recipe_are_named_together():
    with pytest.raises(sv.UserError, match=r"optimizer\.lrr=1[\s\S]*training\.sed=2"):
        sv.load_recipe(RECIPE, "optimizer.lrr=1", "training.sed=2")
