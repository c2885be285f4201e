"""Searches through Ray Tune on a real head: what is tracked, what fails, what a kill leaves, what stays behind."""

import csv
import json
import random
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.driving import Done, Driver

from scalablevit.config.loading import load_recipe
from scalablevit.tracking.outbox import read_lines
from scalablevit.tracking.records import MetricsRecord

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000)]

Search = Callable[..., Done]
KEPT_BY_RAY = {"_AutoscalingCoordinatorActor", "_StatsActor", "_UsageCollectionActor", "ActorLocationTracker"}
"""Actors of Ray Train and Ray Data for the whole cluster, which stay between jobs."""


@pytest.fixture
def search(driver: Driver, tmp_path: Path) -> Search:
    """`pipelines/tune.py` to its end."""

    def run(space: Path, *arguments: str, root: Path = tmp_path) -> Done:
        return driver.script("tune", "--space", str(space), "--root", str(root), *arguments)

    return run


def folder_of(root: Path) -> Path:
    (found,) = (root / "runs").glob("toy-pretrain-search-*")
    return found


def rows(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder_of(root) / "trials.csv").read_text().splitlines()))


def steps_trained(folder: Path) -> dict[str, list[int]]:
    """By trial's run: the steps whose training metrics were recorded, in order of recording."""
    found: dict[str, list[int]] = {}
    for line in read_lines(folder / "outbox"):
        assert line.record is not None
        if isinstance(line.record, MetricsRecord) and "train/loss" in line.record.metrics:
            found.setdefault(line.record.uid, []).append(line.record.step)
    return found


def test_a_search_is_tracked_and_its_best_is_retrained_and_registered(search, write_space, tmp_path):
    import mlflow

    done = search(write_space(searcher="tpe", budget={"trials": 4}, keep_best=2,
                              scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2}))  # fmt: skip
    assert done.code == 0, done.output
    folder, table = folder_of(tmp_path), rows(tmp_path)
    values = json.loads((folder / "trials.json").read_text())
    assert len(table) == len(values) == 4
    statuses = {row["status"] for row in table}
    assert "finished" in statuses <= {"finished", "stopped"}, done.output
    for row, drawn in zip(table, values, strict=True):
        trained = (folder / "trials" / f"{int(row['trial']):04d}" / "recipe.yaml").read_text()
        assert f"lr: {drawn['optimizer.lr']!r}" in trained, "the recipe that was trained has what was drawn"
    best = min(table, key=lambda row: float(row["best"]))

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("scalablevit").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if run.info.run_name == folder.name]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4 and all(run.info.status == "FINISHED" for run in (parent, *children))
    for run in children:
        row = table[int(run.data.tags["trial"])]
        points = client.get_metric_history(run.info.run_id, "val/loss")
        assert min(point.value for point in points) == pytest.approx(float(row["best"]))
        assert run.data.metrics["best/loss"] == pytest.approx(float(row["best"]))
        assert float(run.data.params["optimizer.lr"]) == float(row["optimizer.lr"])
        assert run.data.tags["stop_reason"] == (row["reason"] or row["status"])
        assert f"lr={float(row['optimizer.lr']):.3g}" in run.info.run_name
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best_recipe.yaml", "space.yaml", "plots"} <= artifacts
    assert {Path(item.path).stem for item in client.list_artifacts(parent.info.run_id, "plots")} == {
        "curves", "history", "importance", "parallel_coordinates"}  # fmt: skip

    recipe = load_recipe(folder / "best_recipe.yaml")
    stage = recipe.stages["pretrain"]
    assert stage.optimizer.lr == float(best["optimizer.lr"]) and stage.training.epochs == 2.0
    version = client.get_model_version_by_alias("toy-pretrain", "candidate")
    assert version.tags["scalablevit.search"] == folder.name
    assert version.tags["scalablevit.search_trial"] == best["trial"]
    retrained = client.get_run(version.run_id)
    assert float(retrained.data.params["optimizer.lr"]) == stage.optimizer.lr

    left = {path.parent.name for path in (folder / "trials").glob("*/checkpoints") if any(path.iterdir())}
    ranking = sorted(table, key=lambda row: float(row["best"]))
    assert left == {f"{int(row['trial']):04d}" for row in ranking[:2]}, "the best two keep their checkpoints"

    again = search(write_space(searcher="tpe", budget={"trials": 4}, keep_best=2,
                               scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2}))  # fmt: skip
    assert again.code == 0 and "already finished" in again.output and rows(tmp_path) == table


def test_a_trial_that_diverges_fails_with_its_reason_and_the_others_go_on(search, write_space, tmp_path):
    space = write_space(searcher="grid", budget={}, parameters={
        "optimizer.lr": {"choice": [10.0, 1e-3]}})  # fmt: skip
    done = search(space, "optimizer.weight_decay=1", "--no-retrain")
    assert done.code == 0, done.output
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["failed", "finished"], table
    assert "not finite" in table[0]["reason"]
    assert f"trial 0: {table[0]['reason']}" in done.output


def test_if_all_fail_it_says_why_and_ends_with_1(search, write_space, tmp_path):
    space = write_space(searcher="grid", budget={}, parameters={"optimizer.lr": {"choice": [10.0]}})
    done = search(space, "optimizer.weight_decay=1")
    assert done.code == 1, done.output
    assert "none of 1 trials came to an evaluation" in done.output and "not finite" in done.output
    assert "Traceback" not in done.output


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_mistake_that_every_trial_meets_ends_the_search_after_three(head, driver, search, write_space, tmp_path):
    """Validation images that are replaced once the search has begun; put back, the search goes on."""
    space = write_space(budget={"trials": 8}, concurrency=1)
    process = head.start("tune", "--space", str(space), "--root", str(tmp_path), "--no-retrain")
    wait_for_trials(tmp_path, process, ended_at_least=0)
    images = {file: file.read_bytes() for file in (tmp_path / "toy-data/classification/val").rglob("*.*")}
    for file in images:
        file.write_bytes(b"replaced")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 2 and "Traceback" not in output, output
    why = "21 files have other contents than when the run began"
    failed = re.findall(rf"^\[search\] . ended; trial (...) .*: failed data: {why}", output, re.MULTILINE)
    assert len(images) == 21 and len(set(failed)) == len(failed) == 3, output
    stopped = "3 trials ended by the same error, and none came to an evaluation, so the search stopped: data: "
    assert output.count(stopped + why) == 1 and "these trials are tried again" in output, output
    nothing_is_left(driver)
    for file, content in images.items():
        file.write_bytes(content)
    again = search(space, "--no-retrain", "--resume")
    assert again.code == 0, again.output
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 8


@pytest.mark.long
@pytest.mark.rotating("search by two workers a trial", 80)
def test_trials_of_two_workers_run_ray_train_inside_tune(driver, search, write_space, tmp_path):
    space = write_space(resources={"workers": 2, "cpus_per_worker": 1}, budget={"trials": 2},
                        scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2})  # fmt: skip
    done = search(space, "--no-retrain")
    assert done.code == 0, done.output
    assert len(rows(tmp_path)) == 2 and all(row["status"] in ("finished", "stopped") for row in rows(tmp_path))
    nothing_is_left(driver)


@pytest.mark.long
@pytest.mark.rotating("population-based training", 80)
def test_population_based_training_copies_from_others(driver, search, write_space, tmp_path):
    space = write_space(scheduler={"kind": "pbt", "perturb_epochs": 0.5}, budget={"trials": 4})
    done = search(space, "--no-retrain")
    assert done.code == 0, done.output
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 4
    segments = sorted(path.relative_to(folder_of(tmp_path)) for path in folder_of(tmp_path).glob("trials/*/segment-*"))
    assert len(segments) > 4, "no trial took over another's weights"
    values = json.loads((folder_of(tmp_path) / "trials.json").read_text())
    assert all(1e-4 <= each["optimizer.lr"] <= 1e-2 for each in values)
    nothing_is_left(driver)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("trials", "kills"),
    [pytest.param(8, 2, marks=pytest.mark.rotating("killed search", 170)), (20, 5)],
)
def test_killed_again_and_again_it_ends_with_the_same_table(head, driver, search, write_space, tmp_path, trials, kills):
    """The driver of a seeded random search, killed with SIGKILL at random moments and resumed."""
    space = write_space(budget={"trials": trials})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (done := search(space, "--no-retrain", root=whole)).code == 0, done.output
    seed = random.randrange(10**6)
    print(f"moments of the kills from seed {seed}")
    moments, at_kills = random.Random(seed), []
    for number in range(kills):
        process = head.start("tune", "--space", str(space), "--root", str(killed), "--no-retrain",
                             *(["--resume"] if number else []))  # fmt: skip
        # spread over the search, and at any moment of the trials that then run
        wait_for_trials(killed, process, ended_at_least=int(trials * (number + moments.random()) / (kills + 1)))
        time.sleep(moments.uniform(0, 3))
        process.kill()
        process.communicate(timeout=60)
        at_kills.append(ended(killed))
        print(f"kill {number + 1}: {len(at_kills[-1])} trials had ended")
    last = search(space, "--no-retrain", "--resume", root=killed)
    assert last.code == 0, last.output
    assert rows(killed) == rows(whole)
    trained = steps_trained(folder_of(killed))
    assert len(trained) == trials
    assert all(steps == list(range(1, 9)) for steps in trained.values()), "a step was lost, or told twice"
    begun_at = ended(killed)
    for then in at_kills:
        assert then == {name: begun_at[name] for name in then}, "a trial that had ended was trained again"
    nothing_is_left(driver)


def ended(root: Path) -> dict[str, int]:
    """Ended trials, and when the last attempt to train each of them began (nanoseconds)."""
    results = folder_of(root).glob("trials/*/result.json")
    return {path.parent.name: (path.parent / "start.txt").stat().st_mtime_ns for path in results}


def wait_for_trials(root: Path, process: "subprocess.Popen[str]", ended_at_least: int) -> None:
    """Until the search has begun its trials, and so many have ended."""
    deadline = time.monotonic() + 300
    while not list((root / "runs").glob("*/trials.json")) or len(ended(root)) < ended_at_least:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def nothing_is_left(driver: Driver) -> None:
    """No placement group, actor or process of a search, by Ray's state API and the machine's list of processes."""
    deadline = time.monotonic() + 60
    while True:
        state = driver.cluster_state()
        left = [group for group in state["groups"] if group != "REMOVED"]
        left += [actor for actor in state["actors"] if actor not in KEPT_BY_RAY]
        if not left:
            return
        assert time.monotonic() < deadline, state
        time.sleep(2)


def test_what_does_not_fit_is_refused_with_the_arithmetic(search, write_space):
    space = write_space(concurrency=3, resources={"workers": 1, "cpus_per_worker": 1})
    done = search(space, "--no-retrain")
    assert done.code == 2 and "Traceback" not in done.output, done.output
    assert "room for 2 trials at once, and 3 are asked for, each of 1 worker(s) x (1 CPU, 0 GPU)" in done.output


@pytest.mark.long
def test_what_the_wall_time_interrupts_goes_on_when_resumed(search, write_space, tmp_path):
    space = write_space(budget={"trials": 240})
    first = search(space, "space.budget.wall_minutes=1", "--no-retrain")
    assert first.code == 0, first.output
    early = rows(tmp_path)
    statuses = [row["status"] for row in early]
    assert "finished" in statuses and "waiting" in statuses, statuses
    assert set(statuses) <= {"finished", "unfinished", "waiting"}
    second = search(space, "--no-retrain", "--resume")
    assert second.code == 0, second.output
    late = rows(tmp_path)
    assert {row["status"] for row in late} == {"finished"}
    assert [row for row in late if row["trial"] in {old["trial"] for old in early if old["status"] == "finished"}] == [
        old for old in early if old["status"] == "finished"]  # fmt: skip
