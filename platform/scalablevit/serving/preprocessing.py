"""Describes the preprocessing of an exported model as plain values, which are written into each ONNX file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.recipe import Stage
from scalablevit.config.section import PlainValues
from scalablevit.data.transforms import fill_color
from scalablevit.tasks.registry import task_kind

FORMAT = 1
"""Version of the keys below."""
PREFIX = "scalablevit."
"""Prefix of the names in an ONNX file's metadata_props; the values are JSON."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image before the exported network sees it; stored as JSON under these names.

    Fields without a text are explained in `tasks.preprocessing.TaskPreprocessing`.
    """

    format: int
    task: str
    classes: list[str]
    """Class names, in the order of the network's outputs."""
    channels: str
    """Order and origin of the channels, in words."""
    value_range: list[int]
    """Lowest and highest value of the network's input."""
    normalization: str
    """How and where values are normalized, in words."""
    mean: list[float]
    """Mean by channel, of values from 0 to 1."""
    std: list[float]
    """Standard deviation by channel, of values from 0 to 1."""
    size: str | list[int]
    """Height and width of the exported input in pixels, or "any"."""
    short_side: int | None
    long_side: int | None
    rounding: str
    shrink_filter: str
    enlarge_filter: str
    """Interpolation of images that are enlarged."""
    antialias: bool
    longest_strip: int | None
    center_crop: int | None
    padding: list[int]
    """Colour of padding: RGB, 0 to 255."""
    score_threshold: float | None
    sliding: PlainValues | None


def describe_preprocessing(stage: Stage, classes: Sequence[str], size: Sequence[int] | None) -> Preprocessing:
    """Return what is done to an image before the exported network sees it, and what its outputs mean.

    Args:
        stage: the model's stage.
        classes: class names, in the order of the network's outputs.
        size: height and width of the exported input in pixels; None: any.
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
        dimensions: names of the open dimensions by axis, in place of the exporter's numbered ones.
        facts: preprocessing, of which each field is stored as JSON under `PREFIX` and its name; None: none.
    """
    import onnx

    model = onnx.load(graph)
    shapes = [value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)]
    for shape in shapes:
        for axis, name in dimensions.items():
            if axis < len(shape) and not shape[axis].HasField("dim_value"):
                shape[axis].dim_param = name
    props = {prop.key: prop.value for prop in model.metadata_props}
    props |= {PREFIX + name: json.dumps(value) for name, value in (vars(facts) if facts else {}).items()}
    onnx.helper.set_model_props(model, props)
    onnx.save(model, graph)
