"""From `ray job submit` to registered models on a real head, and again after the head was killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "tests/end_to_end/tiny.yaml"
HEAD = [sys.executable, str(ROOT / "infra" / "head.py")]
JOB_S = 600
LOGGED = sorted({1, 5, *range(2, 81, 2)})
"""Steps of the segmentation stage with training figures: its cadence, and the first steps."""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@dataclass
class Place:
    """A platform root with a head of its own."""

    root: Path

    def head(self, command: str) -> str:
        return subprocess.run([*HEAD, command, "--root", str(self.root)], check=True, timeout=120, text=True,
                              capture_output=True).stdout  # fmt: skip

    def environment(self) -> dict[str, str]:
        """What the head exports, on top of ours; without a path to the package, which must come with the job."""
        exports = (line.removeprefix("export ") for line in self.head("env").splitlines() if "=" in line)
        pairs = {name: value.strip("'\"") for name, _, value in (line.partition("=") for line in exports)}
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SCALABLEVIT_ROOT")}
        return {**kept, **pairs, "SCALABLEVIT_ROOT": str(self.root)}

    def submit(self, *arguments: str, name: str | None = None, wait: bool = True) -> "subprocess.Popen[str]":
        """The bare command of the README."""
        ray = str(Path(sys.executable).with_name("ray"))
        variables = json.dumps({"env_vars": {"SCALABLEVIT_ROOT": str(self.root)}})
        command = [ray, "job", "submit", "--working-dir", ".", "--runtime-env-json", variables,
                   *(["--submission-id", name] if name else []), "--",
                   "python", "pipelines/full.py", "--recipe", RECIPE, *arguments]  # fmt: skip
        job = subprocess.Popen(command, cwd=ROOT, env=self.environment(), text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)  # fmt: skip
        if wait:
            try:
                self.output = job.communicate(timeout=JOB_S)[0]
            finally:
                job.kill()
        return job

    def results(self) -> dict[str, dict[str, Any]]:
        return {r["name"]: r for r in map(_json, (self.root / "runs").glob("*/result.json"))}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A root on which the recipe ran undisturbed."""
    place = Place(tmp_path_factory.mktemp("whole"))
    place.head("start")
    try:
        job = place.submit()
        assert job.returncode == 0, place.output
        yield place
    finally:
        place.head("stop")


def test_all_models_are_registered_with_their_lineage(whole):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{whole.root}/mlflow.db")
    results = whole.results()
    pretrain, segment, detect = (
        client.get_model_version_by_alias(f"tiny-{name}", "candidate") for name in ("pretrain", "segment", "detect")
    )
    for tuned, name in ((segment, "segment"), (detect, "detect")):
        assert tuned.tags["scalablevit.init_sha256"] == results["pretrain"]["weights_sha256"]
        assert tuned.tags["scalablevit.weights_sha256"] == results[name]["weights_sha256"]
        assert tuned.tags["scalablevit.parent_version"] == f"tiny-pretrain/{pretrain.version}"
    runs = {
        run.info.run_id: run for run in client.search_runs([client.get_experiment_by_name("scalablevit").experiment_id])
    }
    assert len(runs) == 4 and all(run.info.status == "FINISHED" for run in runs.values())
    child = runs[segment.run_id]
    assert runs[child.data.tags["mlflow.parentRunId"]].info.run_name.startswith("tiny-")
    losses = client.get_metric_history(segment.run_id, "train/loss")
    assert [point.step for point in losses] == LOGGED
    assert child.data.params["optimizer.lr"] == "0.001"
    assert any(name.startswith("system/node0/") for name in child.data.metrics)


def test_each_run_left_a_folder_that_is_read_without_a_server(whole):
    runs = sorted((whole.root / "runs").glob("tiny-*"))
    statuses = {run.name: _json(run / "status.json") for run in runs}
    assert [status["state"] for status in statuses.values()] == ["finished"] * 4
    assert all(status["job"] for status in statuses.values()), "Ray's submission id"
    stages = [run for run in runs if statuses[run.name]["unit"] == "steps"]
    for run in stages:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert len({line["step"] for line in lines}) == len(lines)
        assert {path.name for path in (run / "plots").iterdir()} == {
            "curves.png", "training_batch.png", "validation.png",
        }  # fmt: skip
    assert len(stages) == 3 and "time of segment: start" in whole.output


def test_fine_tunings_ran_beside_each_other(whole):
    """Both fit on the head's two CPUs at once."""
    import mlflow

    assert "running beside each other: segment, detect" in whole.output
    client = mlflow.MlflowClient(f"sqlite:///{whole.root}/mlflow.db")
    spans = []
    for name in ("segment", "detect"):
        run = client.get_model_version_by_alias(f"tiny-{name}", "candidate").run_id
        times = [point.timestamp for point in client.get_metric_history(run, "train/loss")]
        spans.append((min(times), max(times)))
    (first, last), (other_first, other_last) = spans
    assert max(first, other_first) < min(last, other_last), spans


def test_driver_and_workers_ran_the_uploaded_snapshot(whole):
    for run in (whole.root / "runs").glob("tiny-*-*/environment.json"):
        assert "runtime_resources" in _json(run)["code"]["path"]


def test_the_registered_models_answer_image_bytes_without_unpickling(whole, monkeypatch):
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(f"sqlite:///{whole.root}/mlflow.db")
    data = whole.root / "tiny-data"
    photo = next((data / "classification" / "val").rglob("*.jpg"))
    answer = mlflow.pyfunc.load_model("models:/tiny-pretrain@candidate").predict([photo.read_bytes()])
    assert answer["class"][0] in {folder.name for folder in (data / "classification" / "val").iterdir()}
    assert 0 < answer["probability"][0] <= 1
    scene = next((data / "segmentation" / "images" / "val").rglob("*.jpg"))
    answer = mlflow.pyfunc.load_model("models:/tiny-segment@candidate").predict([scene.read_bytes()])
    assert answer["mask_png"][0].startswith(b"\x89PNG")
    answer = mlflow.pyfunc.load_model("models:/tiny-detect@candidate").predict([scene.read_bytes()])
    found = answer.iloc[0]
    assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) == len(found["masks"])


def test_the_table_names_what_came_out(whole):
    for part in (
        "tiny-pretrain v1 @candidate",
        "tiny-segment v1 @candidate",
        "tiny-detect v1 @candidate",
        "images/s",
        "mlflow ui",
    ):
        assert part in whole.output


def test_a_registered_model_initialises_a_run_with_other_classes(whole):
    """`model.init: models:/...`: the backbone is kept, the head for other classes is new and named."""
    from scalablevit.config.loading import load_recipe
    from scalablevit.jobs.resolve import resolve
    from scalablevit.models.backbone import build_classifier
    from scalablevit.models.weights import load_initial

    recipe = load_recipe(ROOT / RECIPE, ["stages.pretrain.model.init=models:/tiny-pretrain@candidate"])
    stage = resolve(recipe, whole.root, ["pretrain"])[0]
    initial = stage.initial
    assert initial is not None and initial.keep_head(stage.classes) and not initial.keep_head(("other",))
    assert initial.sha256 == whole.results()["pretrain"]["weights_sha256"]
    assert initial.version == "tiny-pretrain/1"
    report = load_initial(build_classifier("scalablevit_tiny", 3), initial.location)
    assert report.new and all(name.startswith("head") for name in report.new)


def test_evaluate_gives_the_recorded_figures(whole, tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "pipelines" / "evaluate.py"), "models:/tiny-segment@candidate", "--root",
               str(whole.root), "--json", str(figures)]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(command, env=environment, timeout=JOB_S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _json(figures)["val/miou"] == pytest.approx(whole.results()["segment"]["value"], abs=1e-6)


def test_after_the_head_was_killed_the_job_goes_on_and_ends_the_same(whole, tmp_path_factory):
    """Killed while both fine-tunings run: pretraining is skipped, both go on in their MLflow runs, bit for bit."""
    import mlflow

    place = Place(tmp_path_factory.mktemp("killed"))
    place.head("start")
    try:
        job = place.submit(wait=False)
        _wait_for_checkpoint(place, job)
        _kill_head(place)
        job.kill()
        job.wait(timeout=30)
        runs = [path.name for path in (place.root / "runs").iterdir()]
        assert len(place.results()) == 1, "a fine-tuning had finished already"
        place.head("start")
        again = place.submit()
        assert again.returncode == 0, place.output
        assert "already finished" in place.output
    finally:
        place.head("stop")
    assert sorted(runs) == sorted(path.name for path in (place.root / "runs").iterdir())
    for name, result in whole.results().items():
        assert place.results()[name]["weights_sha256"] == result["weights_sha256"], name
        assert place.results()[name]["metrics"] == result["metrics"], name
    client = mlflow.MlflowClient(f"sqlite:///{place.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("scalablevit").experiment_id])
    assert len(runs) == 4 and all(run.info.status == "FINISHED" for run in runs)
    segment = next(run for run in runs if run.info.run_name.startswith("tiny-segment"))
    points = client.get_metric_history(segment.info.run_id, "train/loss")
    assert [point.step for point in points] == LOGGED, "a metric was lost or doubled"


def test_a_stopped_job_is_marked_killed(whole):
    """`ray job stop` ends like Ctrl-C: it is saved, both MLflow runs say KILLED, the run's folder is released."""
    import mlflow

    # too long to end by itself before it is stopped, and no checkpoint is due but at evaluations, every 40 steps
    longer = [f"stages.segment.training.{key}=5000" for key in ("steps", "checkpoint_every.steps")]
    before = set((whole.root / "runs").glob("tiny-segment-*"))
    job = whole.submit(*longer, name="to-be-stopped", wait=False)
    _wait_for_checkpoint(whole, job, but=1)
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray, "job", "stop", "to-be-stopped"], env=whole.environment(), check=True, timeout=120)
    said, _ = job.communicate(timeout=120)
    client = mlflow.MlflowClient(f"sqlite:///{whole.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("scalablevit").experiment_id])
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 4 + ["KILLED"] * 2
    assert [lease for lease in (whole.root / "runs").glob("*/lease.json") if _json(lease)] == []
    states = [_json(status)["state"] for status in (whole.root / "runs").glob("*/status.json")]
    assert sorted(states) == ["finished"] * 4 + ["killed"] * 2
    (stopped,) = set((whole.root / "runs").glob("tiny-segment-*")) - before
    saved = max(_json(manifest)["step"] for manifest in stopped.glob("checkpoints/*/manifest.json"))
    told = _json(stopped / "status.json")["step"]  # the last of the steps that are told, every second one
    assert "saving first" in said and told <= saved < told + 2, said


def _wait_for_checkpoint(place: Place, job: "subprocess.Popen[str]", but: int = 0) -> None:
    """Until one more run of the second stage than `but` has a checkpoint."""
    deadline = time.monotonic() + JOB_S
    while len({m.parents[2] for m in (place.root / "runs").glob("tiny-segment-*/checkpoints/*/manifest.json")}) <= but:
        assert time.monotonic() < deadline and job.poll() is None, "the second stage never saved"
        time.sleep(0.1)


def _kill_head(place: Place) -> None:
    """SIGKILL to the head and all that it started; `stop` then clears up what is recorded."""
    head = _json(place.root / "head.json")
    os.killpg(head["pid"], 9)
    place.head("stop")
