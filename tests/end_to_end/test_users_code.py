"""The package of docs/examples/own_task through a real head: training with a kill, search, registry, use."""

import csv
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
from harness.heads import JOB_S, ROOT, Head, output_of
from harness.user_code import EXAMPLE, write_tag_data

from scalablevit.tracking import tags

RECIPE, SPACE = EXAMPLE / "tags.yaml", EXAMPLE / "space.yaml"
LONG = ["training.steps=60"]
"""Long enough for a worker to be killed between its first checkpoint and its end."""

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(2400)]


@dataclass
class Place:
    """A platform root, and drivers that find the example on their path; the head's own processes do not."""

    head: Head
    root: Path

    def start(self, script: str, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(ROOT / "pipelines" / f"{script}.py"), *arguments, "--root", str(self.root)]
        env = {**self.head.environment(), "PYTHONPATH": str(EXAMPLE)}
        return subprocess.Popen(command, cwd=self.root, env=env, text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)  # fmt: skip

    def finish(self, script: str, *arguments: str) -> str:
        """Run a script to its end and return its output."""
        process = self.start(script, *arguments)
        output = output_of(process)
        assert process.returncode == 0, output
        return output


@dataclass
class Trained:
    """A root on which the recipe ran while one of its two workers was killed."""

    place: Place
    output: str
    result: dict[str, Any]


@pytest.fixture(scope="module")
def trained(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = Place(head, tmp_path_factory.mktemp("users-code"))
    write_tag_data(place.root)
    job = place.start("full", "--recipe", str(RECIPE), "cluster.workers=2", *LONG)
    deadline = time.monotonic() + JOB_S
    while not list((place.root / "runs").glob("tags-tag-*/checkpoints/*/manifest.json")):
        assert job.poll() is None and time.monotonic() < deadline, output_of(job, 1)
        time.sleep(0.05)
    os.kill(min(head.actors("RayTrainWorker")), signal.SIGKILL)
    output = output_of(job)
    assert job.returncode == 0, output
    (result,) = (json.loads(path.read_text()) for path in (place.root / "runs").glob("tags-tag-*/result.json"))
    return Trained(place, output, result)


def test_it_trains_on_workers_goes_on_after_a_kill_and_is_registered(trained):
    import mlflow

    assert trained.result["metric"] == "val/f1" and trained.result["last_step"] == 60
    client = mlflow.MlflowClient(f"sqlite:///{trained.place.root}/mlflow.db")
    version = client.get_model_version_by_alias("tags-tag", "candidate")
    assert version.tags[tags.WEIGHTS_SHA256] == trained.result["weights_sha256"]
    assert list(json.loads(version.tags[tags.USER_CODE])) == ["image_tags"]
    again = trained.place.finish("full", "--recipe", str(RECIPE), "cluster.workers=2", *LONG)
    assert "[tag] already finished: val/f1" in again


def test_it_is_searched(trained):
    output = trained.place.finish("tune", "--space", str(SPACE), "--no-retrain")
    (table,) = (trained.place.root / "runs").glob("tags-tag-search-*/trials.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["status"] for row in rows] == ["finished", "finished"], output


def test_it_is_evaluated_promoted_and_predicts_on_the_cluster(trained, tmp_path):
    place, predictions = trained.place, tmp_path / "predictions"
    place.finish("evaluate", "models:/tags-tag@candidate", "--json", str(tmp_path / "metrics.json"))
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["val/f1"] == pytest.approx(trained.result["metrics"]["val/f1"], abs=1e-6)
    assert "promoted against the limits alone" in place.finish("promote", "tags-tag")
    images = place.root / "tag-data" / "images" / "val"
    place.finish("predict", "models:/tags-tag@champion", str(images), "--out", str(predictions))
    rows = list(csv.DictReader((predictions / "tags.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == sorted(path.name for path in images.iterdir())


def test_mlflow_serves_it_without_its_package_on_the_path(trained):
    script = (
        "import sys, mlflow, pandas as pd\nfrom pathlib import Path\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/tags-tag@candidate')\n"
        "print(sorted(model.predict(pd.DataFrame({'image': [Path(sys.argv[2]).read_bytes()]})).columns))"
    )
    image = next((trained.place.root / "tag-data" / "images" / "val").iterdir())
    said = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{trained.place.root}/mlflow.db", str(image)],
        check=True, capture_output=True, text=True, timeout=JOB_S, env={**os.environ, "PYTHONPATH": ""},
    ).stdout  # fmt: skip
    assert said.splitlines()[-1] == "['probabilities', 'tags']"


def test_no_line_of_the_platform_is_changed_for_it():
    named = ["git", "grep", "-l", "-e", "image_tags", "-e", "tagging", "--", "platform"]
    assert subprocess.run(named, cwd=ROOT, check=False, capture_output=True, text=True).stdout == ""
