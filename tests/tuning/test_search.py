"""Searches through Ray Tune on a real head: what is tracked, what fails, what a kill leaves, what stays behind."""

import csv
import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import searching

from scalablevit.config.loading import load_recipe
from scalablevit.tracking.spool import read_lines

ROOT = Path(__file__).resolve().parents[2]
HEAD = [sys.executable, str(ROOT / "infra" / "head.py")]
SEARCH_S = 700

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


class Head:
    """A head with its platform root."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, verb: str) -> str:
        return subprocess.run([*HEAD, verb, "--root", str(self.root)], check=True, timeout=120, text=True,
                              capture_output=True).stdout  # fmt: skip

    def environment(self) -> dict[str, str]:
        exports = (line.removeprefix("export ") for line in self.command("env").splitlines() if "=" in line)
        pairs = {name: value.strip("'\"") for name, _, value in (line.partition("=") for line in exports)}
        ray = json.loads((self.root / "head.json").read_text())
        return {**os.environ, **pairs, "RAY_ADDRESS": ray["address"]}

    def start(self, space: Path, *arguments: str, root: Path) -> "subprocess.Popen[str]":
        """`pipelines/tune.py` as a process of its own."""
        command = [sys.executable, str(ROOT / "pipelines" / "tune.py"), "--space", str(space),
                   "--root", str(root), *arguments]  # fmt: skip
        return subprocess.Popen(command, env=self.environment(), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, cwd=self.root)  # fmt: skip

    def search(self, space: Path, *arguments: str, root: Path) -> "subprocess.CompletedProcess[str]":
        """The same, to its end."""
        process = self.start(space, *arguments, root=root)
        try:
            output = process.communicate(timeout=SEARCH_S)[0]
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output)


Tune = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    place = Head(tmp_path_factory.mktemp("head"))
    place.command("start")
    try:
        yield place
    finally:
        place.command("stop")


Call = Callable[..., Any]


@pytest.fixture(scope="module")
def driver(head: Head) -> Iterator[Call]:
    """A process that makes one search after another: calls a function of `searching` there, by its name."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=searching.serve, args=(there, head.environment()))
    process.start()
    there.close()

    numbers = itertools.count()

    def call(function: str, *arguments: Any, limit_s: float = SEARCH_S) -> Any:
        number = next(numbers)
        here.send((number, function, arguments))
        end = time.monotonic() + limit_s
        while here.poll(max(0.0, end - time.monotonic())):
            answered, answer = here.recv()
            if answered == number:  # else what an earlier test did not wait for
                return answer
        raise AssertionError(f"no answer to {function} within {limit_s:.0f} s")

    try:
        yield call
    finally:
        process.kill()  # Ray's handler of SIGTERM stays behind in it
        process.join(30)


@pytest.fixture
def search(driver: Call, tmp_path: Path) -> Tune:
    """`pipelines/tune.py` to its end, in that process."""

    def run(space: Path, *arguments: str, root: Path = tmp_path) -> "subprocess.CompletedProcess[str]":
        given = ["--space", str(space), "--root", str(root), *arguments]
        code, output = driver("search", given)
        return subprocess.CompletedProcess(given, code, output)

    return run


def folder_of(root: Path) -> Path:
    (found,) = (root / "runs").glob("toy-pretrain-search-*")
    return found


def rows(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder_of(root) / "trials.csv").read_text().splitlines()))


def steps_trained(folder: Path) -> dict[str, list[int]]:
    """By trial's run: the steps whose training metrics were recorded, in order of recording."""
    found: dict[str, list[int]] = {}
    for line in read_lines(folder / "spool"):
        assert line.record is not None
        if line.record["kind"] == "metrics" and "train/loss" in line.record["metrics"]:
            found.setdefault(line.record["uid"], []).append(line.record["step"])
    return found


def test_a_search_is_tracked_and_its_best_is_retrained_and_registered(head, search, write_space, tmp_path):
    import mlflow

    done = head.search(write_space(searcher="tpe", budget={"trials": 5}, keep_best=2,
                                   scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2}),
                       root=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout
    folder, table = folder_of(tmp_path), rows(tmp_path)
    values = json.loads((folder / "trials.json").read_text())
    assert len(table) == len(values) == 5
    statuses = {row["status"] for row in table}
    assert "finished" in statuses <= {"finished", "stopped"}, done.stdout
    for row, drawn in zip(table, values, strict=True):
        trained = (folder / "trials" / f"{int(row['trial']):04d}" / "recipe.yaml").read_text()
        assert f"lr: {drawn['optimizer.lr']!r}" in trained, "the recipe that was trained has what was drawn"
    best = min(table, key=lambda row: float(row["best"]))

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("scalablevit").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if run.info.run_name == folder.name]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 5 and all(run.info.status == "FINISHED" for run in (parent, *children))
    for run in children:
        row = table[int(run.data.tags["trial"])]
        points = client.get_metric_history(run.info.run_id, "val/loss")
        assert min(point.value for point in points) == pytest.approx(float(row["best"]))
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

    again = search(write_space(searcher="tpe", budget={"trials": 5}, keep_best=2,
                               scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2}))  # fmt: skip
    assert again.returncode == 0 and "already finished" in again.stdout and rows(tmp_path) == table


def test_a_trial_that_diverges_fails_with_its_reason_and_the_others_go_on(search, write_space, tmp_path):
    space = write_space(searcher="grid", budget={}, parameters={
        "optimizer.lr": {"choice": [1e-3, 10.0, 2e-3]}})  # fmt: skip
    done = search(space, "optimizer.weight_decay=1", "--no-retrain")
    assert done.returncode == 0, done.stdout
    table = rows(tmp_path)
    assert [row["status"] for row in table] == ["finished", "failed", "finished"], table
    assert "not finite" in table[1]["reason"]
    assert f"trial 1: {table[1]['reason']}" in done.stdout


def test_if_all_fail_it_says_why_and_ends_with_1(search, write_space, tmp_path):
    space = write_space(searcher="grid", budget={}, parameters={"optimizer.lr": {"choice": [9.0, 10.0]}})
    done = search(space, "optimizer.weight_decay=1")
    assert done.returncode == 1, done.stdout
    assert "none of 2 trials came to an evaluation" in done.stdout and "not finite" in done.stdout
    assert "Traceback" not in done.stdout


def test_trials_of_two_workers_run_ray_train_inside_tune(driver, search, write_space, tmp_path):
    space = write_space(resources={"workers": 2, "cpus_per_worker": 1}, budget={"trials": 3},
                        scheduler={"kind": "asha", "grace_epochs": 0.5, "reduction_factor": 2})  # fmt: skip
    done = search(space, "--no-retrain")
    assert done.returncode == 0, done.stdout
    assert len(rows(tmp_path)) == 3 and all(row["status"] in ("finished", "stopped") for row in rows(tmp_path))
    nothing_is_left(driver)


def test_population_based_training_copies_from_others(driver, search, write_space, tmp_path):
    space = write_space(scheduler={"kind": "pbt", "perturb_epochs": 0.5}, budget={"trials": 4})
    done = search(space, "--no-retrain")
    assert done.returncode == 0, done.stdout
    assert [row["status"] for row in rows(tmp_path)] == ["finished"] * 4
    segments = sorted(path.relative_to(folder_of(tmp_path)) for path in folder_of(tmp_path).glob("trials/*/segment-*"))
    assert len(segments) > 4, "no trial took over another's weights"
    values = json.loads((folder_of(tmp_path) / "trials.json").read_text())
    assert all(1e-4 <= each["optimizer.lr"] <= 1e-2 for each in values)
    nothing_is_left(driver)


@pytest.mark.parametrize(
    ("trials", "kills"), [(8, 2), pytest.param(20, 5, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_killed_again_and_again_it_ends_with_the_same_table(head, driver, search, write_space, tmp_path, trials, kills):
    """The driver of a seeded random search, killed with SIGKILL at random moments and resumed."""
    space = write_space(budget={"trials": trials})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert (done := search(space, "--no-retrain", root=whole)).returncode == 0, done.stdout
    seed = random.randrange(10**6)
    print(f"moments of the kills from seed {seed}")
    moments, at_kills = random.Random(seed), []
    for number in range(kills):
        process = head.start(space, "--no-retrain", *(["--resume"] if number else []), root=killed)
        # spread over the search, and at any moment of the trials that then run
        wait_for_trials(killed, process, ended_at_least=int(trials * (number + moments.random()) / (kills + 1)))
        time.sleep(moments.uniform(0, 3))
        process.kill()
        process.communicate(timeout=60)
        at_kills.append(ended(killed))
        print(f"kill {number + 1}: {len(at_kills[-1])} trials had ended")
    last = search(space, "--no-retrain", "--resume", root=killed)
    assert last.returncode == 0, last.stdout
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


def nothing_is_left(driver: Call) -> None:
    """No placement group, actor or process of a search, by Ray's state API and the machine's list of processes."""
    deadline = time.monotonic() + 60
    while True:
        state = driver("state", limit_s=120)
        left = [group for group in state["groups"] if group != "REMOVED"]
        # one for the whole cluster, which Ray Train keeps between jobs
        left += [actor for actor in state["actors"] if actor != "_AutoscalingCoordinatorActor"]
        if not left:
            return
        assert time.monotonic() < deadline, state
        time.sleep(2)


def test_what_does_not_fit_is_refused_with_the_arithmetic(search, write_space):
    space = write_space(concurrency=3, resources={"workers": 1, "cpus_per_worker": 1})
    done = search(space, "--no-retrain")
    assert done.returncode == 2 and "Traceback" not in done.stdout, done.stdout
    assert "room for 2 trials at once, and 3 are asked for, each of 1 worker(s) x (1 CPU, 0 GPU)" in done.stdout


@pytest.mark.long
def test_what_the_wall_time_interrupts_goes_on_when_resumed(search, write_space, tmp_path):
    space = write_space(budget={"trials": 240})
    first = search(space, "space.budget.wall_minutes=1", "--no-retrain")
    assert first.returncode == 0, first.stdout
    early = rows(tmp_path)
    statuses = [row["status"] for row in early]
    assert "finished" in statuses and "waiting" in statuses, statuses
    assert set(statuses) <= {"finished", "unfinished", "waiting"}
    second = search(space, "--no-retrain", "--resume")
    assert second.returncode == 0, second.stdout
    late = rows(tmp_path)
    assert {row["status"] for row in late} == {"finished"}
    assert [row for row in late if row["trial"] in {old["trial"] for old in early if old["status"] == "finished"}] == [
        old for old in early if old["status"] == "finished"]  # fmt: skip
