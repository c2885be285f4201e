"""Batch prediction with the toy runs of `toys`."""

from pathlib import Path

from harness.toys import stage_of
from scalablevit.cli import predict
from scalablevit.cli.tree import parse
from scalablevit.data.sources.opening import open_source
from scalablevit.serving.network import TrainedNetwork, load_trained

ALL = "task.score_threshold=0.0"  # untrained detectors are sure of nothing


def run(root: Path, name: str, images: Path, out: Path, *more: str) -> int:
    return predict.run(parse("predict", [f"toy-{name}-0", str(images), "--out", str(out), "--root", str(root), *more]))


def trained(root: Path, name: str) -> TrainedNetwork:
    stage = stage_of(name, *([f"stages.detect.{ALL}"] if name == "detect" else []))
    classes = open_source(stage.data, "val", root).classes
    return load_trained(stage, classes, root / "runs" / f"toy-{name}-0" / "model" / "weights.safetensors")
