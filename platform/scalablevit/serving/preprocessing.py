"""What an exported model expects of an image, as plain values: the recipe's evaluation, written into each ONNX file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalablevit.config.recipe import Stage
from scalablevit.data.transforms import fill_color
from scalablevit.tasks.registry import task_kind

FORMAT = 1
"""Version of these keys."""
PREFIX = "scalablevit."
"""Of the names of an ONNX file's metadata_props, whose values are JSON."""


def describe_preprocessing(stage: Stage, classes: Sequence[str], size: Sequence[int] | None) -> dict[str, Any]:
    """Return what is done to an image before the exported network sees it, and what its outputs mean.

    Args:
        stage: of the model.
        classes: names, in the order of the network's outputs.
        size: height and width of the exported input; None: any.
    """
    data, kind = stage.data, stage.task.kind
    facts: dict[str, Any] = {
        "format": FORMAT,
        "task": kind,
        "classes": list(classes),
        "channels": "RGB, upright by EXIF, transparent pixels composed onto the colour of padding",
        "value_range": [0, 255],
        "normalization": "inside: the network takes values of value_range and computes (value / 255 - mean) / std",
        "mean": list(data.mean),
        "std": list(data.std),
        "size": "any" if size is None else list(size),
        "short_side": None,
        "long_side": None,
        "rounding": "half_up",
        "shrink_filter": "area",
        "enlarge_filter": "bilinear",
        "antialias": True,
        "longest_strip": None,
        "center_crop": None,
        "padding": list(fill_color(data)),
        "score_threshold": None,
        "sliding": None,
    }
    return facts | task_kind(kind).describe_preprocessing(stage)


def finish_graph(graph: Path, dimensions: Mapping[int, str], facts: Mapping[str, Any]) -> None:
    """Name the open dimensions of an ONNX file's inputs and outputs, and add facts to its metadata_props.

    Args:
        graph: the file.
        dimensions: names of the open dimensions by their axis; an exporter numbers them.
        facts: each is kept as JSON under `PREFIX` and its name.
    """
    import onnx

    model = onnx.load(graph)
    shapes = [each.type.tensor_type.shape.dim for each in (*model.graph.input, *model.graph.output)]
    for shape in shapes:
        for axis, name in dimensions.items():
            if axis < len(shape) and not shape[axis].HasField("dim_value"):
                shape[axis].dim_param = name
    props = {each.key: each.value for each in model.metadata_props}
    props |= {PREFIX + name: json.dumps(value) for name, value in facts.items()}
    onnx.helper.set_model_props(model, props)
    onnx.save(model, graph)
