"""Prometheus finds a head's nodes by Ray's own file, and sees a job that trains, loses a worker and is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.heads import ROOT, TINY, output_of, running
from harness.prometheus import Prometheus, program, prometheus

from scalablevit.training.gauges import GAUGES

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(1500)]
TRAINING = ["stages.pretrain.training.steps=1000000", "stages.pretrain.training.evaluate_every.steps=20",
            "stages.pretrain.training.checkpoint_every.steps=20"]  # fmt: skip
DEFAULT_FOLDER, JOB = "/tmp/ray", "watched"  # noqa: S108  # Ray's own


def values_of(server: Prometheus) -> dict[str, float]:
    """Value of each of our gauges now, by name without `ray_`; all have the labels of the run."""
    found = server.get("query", query='{__name__=~"ray_scalablevit_.+"}')["result"]
    for sample in found:
        labels = sample["metric"]
        assert labels["stage"] == "pretrain" and labels["run"].startswith("tiny-pretrain-"), labels
        assert ("metric" in labels) == labels["__name__"].endswith("_metric")
    return {sample["metric"]["__name__"].removeprefix("ray_"): float(sample["value"][1]) for sample in found}


def wait(server: Prometheus, fits: Callable[[dict[str, float]], bool], limit_s: float) -> dict[str, float]:
    """Return the values once they fit."""
    values: dict[str, float] = {}
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            values = values_of(server)
        except OSError:  # it is still starting
            values = {}
        else:
            if fits(values):
                return values
        time.sleep(1)
    raise AssertionError(f"after {limit_s} s: {values}")


def test_prometheus_sees_a_running_job(tmp_path: Path) -> None:
    program("prometheus")
    with running(tmp_path / "head", "--num-cpus", "2") as head:
        for file in (ROOT / "infra" / "metrics").glob("*.yml"):
            text = file.read_text().replace(DEFAULT_FOLDER, head.record()["temp_dir"]).replace("15s", "2s")
            (tmp_path / file.name).write_text(text)
        with prometheus(tmp_path / "prometheus.yml", tmp_path) as server:
            job = head.submit(tmp_path / "root", "full", "--recipe", str(TINY.relative_to(ROOT)), *TRAINING, name=JOB)
            before = wait(server, lambda values: values.keys() == GAUGES.keys(), 600)
            assert before["scalablevit_step_seconds"] == pytest.approx(16 / before["scalablevit_images_per_second"])
            assert before["scalablevit_restarts"] == 0 and 0 <= before["scalablevit_data_wait_ratio"] <= 1
            assert before["scalablevit_report_age_seconds"] < 120 and before["scalablevit_outbox_age_seconds"] < 120

            os.kill(min(head.actors("RayTrainWorker")), signal.SIGKILL)
            lost = wait(server, lambda values: values.get("scalablevit_restarts") == 1, 300)["scalablevit_step"]
            wait(server, lambda values: values.get("scalablevit_step", 0) > lost, 300)

            (group,) = server.get("rules")["groups"]
            assert {(rule["name"], rule["health"]) for rule in group["rules"]} == {
                (name, "ok") for name in ("TrainingStalled", "TrainingDiverged", "TrainingRestarting", "TrackingAway")
            }
            assert [each["labels"]["alertname"] for each in server.get("alerts")["alerts"]] == []
            assert server.get("query", query="ray_node_cpu_utilization and ray_node_disk_free")["result"]

            ray = str(Path(sys.executable).with_name("ray"))
            subprocess.run([ray, "job", "stop", JOB], env=head.environment(), check=True, timeout=180)
            output = output_of(job)
            wait(server, lambda values: not values, 60)
    assert "Exception in thread gauges" not in output
