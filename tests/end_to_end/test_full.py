"""From `ray job submit` to registered models on a real head, with a worker killed on the way; after other losses."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness.heads import JOB_S, ROOT, TINY, Head, output_of
from harness.killing import sums_of
from harness.ranks import Attempt, run_attempts

from scalablevit.config.loading import load_recipe
from scalablevit.pipeline.resolve import resolve
from scalablevit.run_files import ATTEMPTS
from scalablevit.training.attempt_events import StartupTimings, read_attempts
from scalablevit.training.worker import WorkerConfig

LOGGED = sorted({1, 5, *range(2, 41, 2)})
"""Steps of the segmentation stage with training metrics: its schedule, and the first steps."""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


PRETRAIN = ["stages.pretrain.training.steps=60", "stages.pretrain.training.checkpoint_every.steps=2"]
"""Long enough for a worker to be killed between its first checkpoint and its end."""


class Place:
    """A platform root whose jobs run on a head."""

    def __init__(self, head: Head, root: Path) -> None:
        self.head = head
        self.root = root

    def submit(self, *arguments: str, name: str | None = None) -> "subprocess.Popen[str]":
        return self.head.submit(self.root, "full", "--recipe", str(TINY.relative_to(ROOT)), *PRETRAIN, *arguments,
                                name=name)  # fmt: skip

    def finish(self) -> str:
        """Submit the job and return its output when it has ended well."""
        job = self.submit()
        output = output_of(job)
        assert job.returncode == 0, output
        return output

    def results(self) -> dict[str, dict[str, Any]]:
        return {r["name"]: r for r in map(_json, (self.root / "runs").glob("*/result.json"))}


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@dataclass
class Whole:
    """A root on which the recipe ran, while one worker of its first stage was killed, and what the job printed."""

    root: Path
    output: str
    results: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def whole(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    place = Place(head, tmp_path_factory.mktemp("whole"))
    job = place.submit()
    _wait_for_checkpoint(place, "pretrain", job)
    os.kill(min(head.actors("RayTrainWorker")), signal.SIGKILL)
    output = output_of(job)
    assert job.returncode == 0, output
    return Whole(place.root, output, place.results())


def test_all_models_are_registered_with_their_lineage(whole):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{whole.root}/mlflow.db")
    results = whole.results
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
    assert child.data.metrics["best/miou"] == results["segment"]["value"]
    assert segment.description.startswith(f"**{segment.name}** version {segment.version}, ")
    parent = runs[child.data.tags["mlflow.parentRunId"]]
    assert parent.data.metrics == {f"{name}/{each['metric'].removeprefix('val/')}": each["value"] for name, each in
                                   results.items()}  # fmt: skip
    assert any(name.startswith("system/node0/") for name in child.data.metrics)


def test_a_lost_worker_changes_nothing(whole, tmp_path):
    """Bit for bit the same run without Ray, in which nothing is lost."""
    (lost,) = (whole.root / "runs").glob("tiny-pretrain-*")
    starts = [each for each in read_attempts(lost / ATTEMPTS)[0] if isinstance(each, StartupTimings)]
    assert [start.from_step > 0 for start in starts] == [False, True], starts
    (resolved,) = resolve(load_recipe(TINY, PRETRAIN), whole.root, ["pretrain"])
    assert resolved.run_name == lost.name
    stage, folder = resolved.stage.model_dump_json(), tmp_path / "undisturbed"
    run_attempts([Attempt(WorkerConfig(stage, str(folder), str(whole.root), None))], 2, tmp_path)
    assert sums_of(lost) == sums_of(folder)
    lines = [json.loads(line) for line in (lost / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train/loss" in line]
    assert steps == sorted({1, 5, *range(2, 61, 2)}), "a metric was lost or doubled"


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
    assert "running in parallel: segment, detect" in whole.output
    spans = []
    for name in ("segment", "detect"):
        (run,) = (whole.root / "runs").glob(f"tiny-{name}-*")
        events = map(json.loads, (run / "attempts.jsonl").read_text().splitlines())
        started = next(event for event in events if event["event"] == "started")
        spans.append((started["entered"], _json(run / "status.json")["ended"]))
    (first, first_end), (second, second_end) = spans
    assert max(first, second) < min(first_end, second_end), spans


def test_the_driver_ran_the_uploaded_snapshot(whole):
    """Of its workers: tests/pipeline/test_cluster.py."""
    environments = list((whole.root / "runs").glob("tiny-*-*/environment.json"))
    assert len(environments) == 3
    for environment in environments:
        assert "/runtime_resources/working_dir_files/" in _json(environment)["code"]["path"]


def test_the_registered_models_predict_image_bytes_without_unpickling(whole, monkeypatch):
    import mlflow.pyfunc

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    mlflow.set_tracking_uri(f"sqlite:///{whole.root}/mlflow.db")
    data = whole.root / "tiny-data"
    photo = next((data / "classification" / "val").rglob("*.jpg"))
    prediction = mlflow.pyfunc.load_model("models:/tiny-pretrain@candidate").predict([photo.read_bytes()])
    assert prediction["class"][0] in {folder.name for folder in (data / "classification" / "val").iterdir()}
    assert 0 < prediction["probability"][0] <= 1
    scene = next((data / "segmentation" / "images" / "val").rglob("*.jpg"))
    prediction = mlflow.pyfunc.load_model("models:/tiny-segment@candidate").predict([scene.read_bytes()])
    assert prediction["mask_png"][0].startswith(b"\x89PNG")
    prediction = mlflow.pyfunc.load_model("models:/tiny-detect@candidate").predict([scene.read_bytes()])
    found = prediction.iloc[0]
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
    from scalablevit.models.backbone import build_classifier
    from scalablevit.models.weights import load_init_weights

    recipe = load_recipe(TINY, [*PRETRAIN, "stages.pretrain.model.init=models:/tiny-pretrain@candidate"])
    stage = resolve(recipe, whole.root, ["pretrain"])[0]
    initial = stage.init_weights
    assert initial is not None and initial.keep_head(stage.classes) and not initial.keep_head(("other",))
    assert initial.sha256 == whole.results["pretrain"]["weights_sha256"]
    assert initial.version == "tiny-pretrain/1"
    report = load_init_weights(build_classifier("scalablevit_tiny", 3), initial.location)
    assert report.new and all(name.startswith("head") for name in report.new)


def test_evaluate_gives_the_recorded_metrics(whole, driver, tmp_path):
    metrics = tmp_path / "metrics.json"
    done = driver.script(
        "evaluate", "models:/tiny-segment@candidate", "--root", str(whole.root), "--json", str(metrics)
    )
    assert done.code == 0, done.output
    assert _json(metrics)["val/miou"] == pytest.approx(whole.results["segment"]["value"], abs=1e-6)


@pytest.mark.long
def test_after_the_head_was_killed_the_job_goes_on_and_ends_the_same(whole, tmp_path_factory):
    """Killed while both fine-tunings run: pretraining is skipped, both go on in their MLflow runs, bit for bit."""
    import mlflow

    folder = tmp_path_factory.mktemp("killed")
    place = Place(Head(folder), folder)
    place.head.command("start")
    try:
        job = place.submit()
        _wait_for_checkpoint(place, "segment", job)
        os.killpg(place.head.record()["pid"], 9)
        place.head.command("stop")  # clears up what is recorded
        job.kill()
        job.wait(timeout=30)
        runs = [path.name for path in (place.root / "runs").iterdir()]
        assert len(place.results()) == 1, "a fine-tuning had finished already"
        place.head.command("start")
        assert "already finished" in place.finish()
    finally:
        place.head.command("stop")
    assert sorted(runs) == sorted(path.name for path in (place.root / "runs").iterdir())
    for name, result in whole.results.items():
        assert place.results()[name]["weights_sha256"] == result["weights_sha256"], name
        assert place.results()[name]["metrics"] == result["metrics"], name
    client = mlflow.MlflowClient(f"sqlite:///{place.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("scalablevit").experiment_id])
    assert len(runs) == 4 and all(run.info.status == "FINISHED" for run in runs)
    segment = next(run for run in runs if run.info.run_name.startswith("tiny-segment"))
    points = client.get_metric_history(segment.info.run_id, "train/loss")
    assert [point.step for point in points] == LOGGED, "a metric was lost or doubled"


@pytest.mark.long
@pytest.mark.rotating("stopped job", 70)
def test_a_stopped_job_is_marked_killed(head, tmp_path):
    """`ray job stop` ends like Ctrl-C: it is saved, both MLflow runs say KILLED, the run's folder is released."""
    import mlflow

    place = Place(head, tmp_path / "root")
    # too long to end by itself before it is stopped, and no checkpoint is due but at evaluations, every 40 steps
    training = "stages.pretrain.training."
    longer = [f"{training}steps=5000", f"{training}evaluate_every.steps=40", f"{training}checkpoint_every.steps=5000"]
    job = place.submit(*longer, name="to-be-stopped")
    _wait_for_checkpoint(place, "pretrain", job)
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray, "job", "stop", "to-be-stopped"], env=head.environment(), check=True, timeout=120)
    output = output_of(job, limit_s=120)
    client = mlflow.MlflowClient(f"sqlite:///{place.root}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("scalablevit").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"] * 2
    assert [lease for lease in (place.root / "runs").glob("*/lease.json") if _json(lease)] == []
    assert [_json(status)["state"] for status in (place.root / "runs").glob("*/status.json")] == ["killed"] * 2
    (stopped,) = (place.root / "runs").glob("tiny-pretrain-*")
    saved = max(_json(manifest)["step"] for manifest in stopped.glob("checkpoints/*/manifest.json"))
    reported = _json(stopped / "status.json")["step"]  # the last of the steps that are reported, every second one
    assert "saving first" in output and reported <= saved < reported + 2, output


def _wait_for_checkpoint(place: Place, stage: str, job: "subprocess.Popen[str]") -> None:
    """Until the stage's run has a checkpoint."""
    deadline = time.monotonic() + JOB_S
    while not list((place.root / "runs").glob(f"tiny-{stage}-*/checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline and job.poll() is None, f"{stage} never saved"
        time.sleep(0.1)
