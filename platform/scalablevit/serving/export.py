"""A trained network as ONNX and torch.export archives, each checked against the network itself on real images."""

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.fx.experimental import _config as symbolic_config

from scalablevit.config.data import Data
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import eval_transform, fill_color
from scalablevit.serving.any_size import for_any_size
from scalablevit.serving.network import TrainedNetwork
from scalablevit.serving.preprocessing import Preprocessing, finish_graph
from scalablevit.tasks.export import FromPixels, Part, Size, flatten_outputs
from scalablevit.tasks.registry import task_kind

TOLERANCE = 1e-3
"""Largest absolute difference from the network's outputs, as a fraction of the largest output, or of 1."""
OPSET = 18
"""Version of ONNX's operators."""
TRACED = 256
"""Shortest side of the example input where height and width are dynamic, pixels."""
SMALLEST = 33
"""Smallest dynamic side, pixels: at stride 32 a smaller one is a map of one token, a separate case to torch.export."""


@dataclass(frozen=True)
class Exported:
    """The files of an exported part of a network, and how their outputs differ from the network's."""

    part: Part
    files: tuple[Path, ...]
    """The archive of torch.export, and the ONNX file."""
    differences: tuple[tuple[float, ...], ...]
    """By file, largest absolute difference from the network's outputs: for `part.inputs`, then for `part.others`."""
    largest: float
    """Largest absolute output of the network."""

    def by_inputs(self) -> dict[str, dict[str, float]]:
        """Return the differences by the file's name and the inputs' shape, such as 4x3x224x224."""
        inputs = [self.part.inputs, *(other for other, _ in self.part.others)]
        shapes = ["x".join(map(str, tensor.shape)) for tensor in inputs]
        return {
            file.name: dict(zip(shapes, by_inputs, strict=True))
            for file, by_inputs in zip(self.files, self.differences, strict=True)
        }

    @property
    def faithful(self) -> bool:
        """Return whether the outputs of all files are finite and equal the network's, within `TOLERANCE`."""
        limit = TOLERANCE * max(self.largest, 1.0)
        return all(math.isfinite(value) and value <= limit for by_inputs in self.differences for value in by_inputs)


def worst(differences: Iterable[float]) -> float:
    """Return the largest difference, or NaN if one is NaN, which Python's `max` passes over unless it comes first."""
    return float(np.max(list(differences)))


def default_size(stage: Stage) -> Size:
    """Return height and width, in pixels, of images as the stage's task usually gets them."""
    return task_kind(stage.task.kind).export().usual_size(stage)


def supports_any_size(stage: Stage) -> bool:
    """Return whether the stage's network can be exported for inputs of any size."""
    return task_kind(stage.task.kind).export().parts is None


def has_selection(stage: Stage) -> bool:
    """Return whether detections are selected from the network's outputs; see `serving.export_detector`."""
    return task_kind(stage.task.kind).export().selection is not None


@torch.no_grad()
def build_parts(
    trained: TrainedNetwork, images: Sequence[NDArray[np.uint8]], size: Size, *, fixed: bool = True
) -> list[Part]:
    """Return the parts of a network to export, with inputs made of real images.

    Classification and segmentation: `network`, logits. Detection: `network`, pyramid and dense head; of Mask R-CNN also
    `box_head` and `mask_head`. Anchors, decoding and suppression stay outside: torch.export refuses torchvision's
    detectors as a whole.

    Args:
        trained: the trained network, on the CPU.
        images: decoded RGB images uint8 (height, width, 3), at least one.
        size: height and width of the exported input in pixels; without `fixed` the usual ones.
        fixed: False makes height and width dynamic, which `supports_any_size` must allow.
    """
    data, export = trained.stage.data, task_kind(trained.stage.task.kind).export()
    pixels = torch.stack([_fit(eval_transform(data)(image=image)["image"], data, size) for image in images])
    pixels = pixels if len(pixels) > 1 else pixels.repeat(2, 1, 1, 1)
    if export.parts is not None:
        return export.parts(trained.network, data, pixels, _normalize(pixels, data))

    def expected(pixels: Tensor) -> list[Tensor]:
        return [export.finish(trained.network(_normalize(pixels, data)), pixels)]

    network, inputs = trained.network, pixels
    others: tuple[tuple[Tensor, list[Tensor]], ...] = ()
    if not fixed:
        network = for_any_size(network)
        inputs, *rest = (_resize(pixels, other) for other in sizes_to_check(size))
        others = tuple((other, expected(other)) for other in (*rest, rest[0][:1]))
    return [
        Part(
            "network", FromPixels(network, data, export.finish), inputs, "pixels", ("logits",), expected(inputs), others
        )
    ]


def sizes_to_check(size: Size) -> tuple[Size, ...]:
    """Return the sizes to trace and check: one to trace, then the usual size, a smaller and a larger one.

    The traced input has several windows and tokens at every stage: torch.export specializes dimensions of size 1.

    Args:
        size: usual height and width of an input, pixels.
    """
    height, width = size
    traced = max(height, TRACED), max(width, TRACED) + 32
    return traced, size, (max(height * 3 // 4, SMALLEST), width), (height + 37, width * 4 // 3)


@torch.no_grad()
def export_part(part: Part, folder: Path, whose: str, facts: Preprocessing | None = None) -> Exported:
    """Write `<part>.pt2` and `<part>.onnx`, and compare their outputs with the network's.

    Args:
        part: see `build_parts`.
        folder: an existing folder.
        whose: the model's name, for errors.
        facts: preprocessing to write into the ONNX file, see `finish_graph`.

    Raises:
        UserError: an exporter refuses the part.
        OSError: a file cannot be written.
    """
    archive, graph = folder / f"{part.name}.pt2", folder / f"{part.name}.onnx"
    named = {0: "N", 2: "H", 3: "W"} if part.others else {0: "N"}
    open_dimensions = dict.fromkeys(named, torch.export.Dim.DYNAMIC)
    kind = "any size" if part.others else "one size"
    with _refuse_export(f"torch.export refuses {part.name} of {whose} for {kind}"), _allow_size_one(bool(part.others)):
        program = torch.export.export(part.module, (part.inputs,), dynamic_shapes=(open_dimensions,))
        content = io.BytesIO()
        torch.export.save(program, content)
    archive.write_bytes(content.getvalue())  # not by torch, which raises RuntimeError on a full disk
    with (
        _refuse_export(f"the ONNX exporter refuses {part.name} of {whose} for {kind}"),
        _allow_size_one(bool(part.others)),
    ):
        torch.onnx.export(
            program,
            (part.inputs,),
            str(graph),
            dynamo=True,
            opset_version=OPSET,
            input_names=[part.input_name],
            output_names=list(part.outputs),
            external_data=False,
            verbose=False,
        )
    finish_graph(graph, named, facts)
    pairs = [(part.inputs, part.expected), *part.others]
    with _refuse_export(f"{archive.name} of {whose} is not for {kind}"):
        program_again = torch.export.load(archive).module()
        by_program = [
            _largest_difference(flatten_outputs(program_again(inputs)), expected) for inputs, expected in pairs
        ]
    with _refuse_export(f"{graph.name} of {whose} is not for {kind}"):
        by_graph = [_largest_difference(_run_onnx(graph, inputs), expected) for inputs, expected in pairs]
    largest = worst(float(output.abs().max()) for _, expected in pairs for output in expected)
    return Exported(part, (archive, graph), (tuple(by_program), tuple(by_graph)), largest)


def _allow_size_one(enabled: bool) -> Any:
    """Keep torch.export from specializing dimensions of size 1."""
    return symbolic_config.patch(backed_size_oblivious=enabled)  # type: ignore[attr-defined]  # put there at its import


def _run_onnx(graph: Path, inputs: Tensor) -> list[Tensor]:
    """Return ONNX Runtime's outputs, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    return [torch.from_numpy(output) for output in outputs]


def _largest_difference(outputs: list[Tensor], expected: list[Tensor]) -> float:
    return worst(float((a - b).abs().max()) for a, b in zip(outputs, expected, strict=True))


@contextmanager
def _refuse_export(what: str) -> Iterator[None]:
    """Turn an exporter's exceptions except OSError into a UserError; hide its warnings, which are about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(
                f"{what}: {type(error).__name__}: {reason}",
                where="model.name",
                fix="ask for one size by --size HxW (multiples of 32), or serve the registered model itself",
            ) from error


def _normalize(pixels: Tensor, data: Data) -> Tensor:
    """Return pixels (N, 3, H, W) from 0 to 255, normalized by the code that training uses."""
    return normalize(pixels.permute(0, 2, 3, 1).to(torch.uint8), data.mean, data.std)


def _resize(pixels: Tensor, size: Size) -> Tensor:
    """Return images (N, 3, H, W) stretched to `size` (height, width), rounded to whole values from 0 to 255."""
    return F.interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)


def _fit(image: NDArray[np.uint8], data: Data, size: Size) -> Tensor:
    """Return an evaluation image (h, w, 3) as float32 (3, H, W), cropped or padded at the right and bottom."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = np.array(fill_color(data), np.uint8)
    height, width = min(size[0], image.shape[0]), min(size[1], image.shape[1])
    canvas[:height, :width] = image[:height, :width]
    return torch.from_numpy(canvas).permute(2, 0, 1).float().contiguous()
