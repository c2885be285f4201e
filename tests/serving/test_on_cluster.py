"""Predictions and scores that a cluster computes are those of one process."""

from dataclasses import asdict
from pathlib import Path

import pytest
from harness.driving import score_here
from harness.toys import stage_of

from scalablevit.data.sources.opening import open_source
from scalablevit.serving.gate import metric_of
from scalablevit.serving.predict import PredictionJob, predict_here
from scalablevit.tasks.output import picture_names

pytestmark = pytest.mark.ray


def test_a_cluster_predicts_as_this_process_does(driver, root, images, tmp_path):
    """Through Ray Data, in order, bad ones too."""
    (images / "page.png").write_text("<html>")
    names = ["0.jpg", "2.jpg", "page.png", "sub/1.jpg", "sub/3.jpg"]
    stage = stage_of("segment")
    classes = open_source(stage.data, "val", root).classes
    weights = str(root / "runs" / "toy-segment-0" / "model" / "weights.safetensors")
    jobs = [
        PredictionJob(stage.model_dump_json(), classes, weights, str(images), str(tmp_path / out)) for out in ("a", "b")
    ]
    far = driver.call("harness.driving", "predict_on_cluster", jobs[0], names, 2)
    assert far == list(predict_here(jobs[1], picture_names(names))) and [name for name, _ in far] == names
    masks = [{p.name: p.read_bytes() for p in (Path(asdict(job)["out"]) / "masks").rglob("*.png")} for job in jobs]
    assert masks[0] == masks[1] and len(masks[0]) == 4


def test_a_cluster_scores_as_this_process_does(driver, registry):
    """On a node with the recipe's resources of one worker."""
    here = score_here("models:/toy-segment/1", registry)
    there = driver.call("harness.driving", "score_on_cluster", "models:/toy-segment/1", registry)
    assert metric_of(there) == metric_of(here)
