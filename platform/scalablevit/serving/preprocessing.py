"""What an exported model expects of an image, as plain values: the recipe's evaluation, written into each ONNX file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.recipe import Stage
from scalablevit.config.section import PlainValues
from scalablevit.data.transforms import fill_color
from scalablevit.tasks.registry import task_kind

FORMAT = 1
"""Version of these keys."""
PREFIX = "scalablevit."
"""Of the names of an ONNX file's metadata_props, whose values are JSON."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the exported network sees it; kept as JSON by these names.

    Without a text below, a field is one of `tasks.preprocessing.TaskPreprocessing`.
    """

    format: int
    task: str
    classes: list[str]
    """Names, in the order of the network's outputs."""
    channels: str
    value_range: list[int]
    """Of the network's input."""
    normalization: str
    mean: list[float]
    """By channel, of values in 0..1."""
    std: list[float]
    size: str | list[int]
    """Height and width of the exported input; "any"."""
    short_side: int | None
    long_side: int | None
    rounding: str
    shrink_filter: str
    enlarge_filter: str
    antialias: bool
    longest_strip: int | None
    center_crop: int | None
    padding: list[int]
    """RGB."""
    score_threshold: float | None
    sliding: PlainValues | None


def describe_preprocessing(stage: Stage, classes: Sequence[str], size: Sequence[int] | None) -> Preprocessing:
    """Return what is done to an image before the exported network sees it, and what its outputs mean.

    Args:
        stage: of the model.
        classes: names, in the order of the network's outputs.
        size: height and width of the exported input; None: any.
    """
    data, kind = stage.data, stage.task.kind
    return Preprocessing(
        format=FORMAT,
        task=kind,
        classes=list(classes),
        channels="RGB, upright by EXIF, transparent pixels composed onto the colour of padding",
        value_range=[0, 255],
        normalization="inside: the network takes values of value_range and computes (value / 255 - mean) / std",
        mean=list(data.mean),
        std=list(data.std),
        size="any" if size is None else list(size),
        enlarge_filter="bilinear",
        padding=list(fill_color(data)),
        **vars(task_kind(kind).describe_preprocessing(stage)),
    )


def finish_graph(graph: Path, dimensions: Mapping[int, str], facts: Preprocessing | None) -> None:
    """Name the open dimensions of an ONNX file's inputs and outputs, and add facts to its metadata_props.

    Args:
        graph: the file.
        dimensions: names of the open dimensions by their axis; an exporter numbers them.
        facts: each is kept as JSON under `PREFIX` and its name; None: there are none.
    """
    import onnx

    model = onnx.load(graph)
    shapes = [each.type.tensor_type.shape.dim for each in (*model.graph.input, *model.graph.output)]
    for shape in shapes:
        for axis, name in dimensions.items():
            if axis < len(shape) and not shape[axis].HasField("dim_value"):
                shape[axis].dim_param = name
    props = {each.key: each.value for each in model.metadata_props}
    props |= {PREFIX + name: json.dumps(value) for name, value in (vars(facts) if facts else {}).items()}
    onnx.helper.set_model_props(model, props)
    onnx.save(model, graph)
