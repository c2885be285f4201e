"""A trained detector as one ONNX file, from pixels to boxes, held against the network itself on real images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.config.errors import UserError
from scalablevit.data.mixing import normalize
from scalablevit.data.transforms import fill_color
from scalablevit.serving.export import OPSET
from scalablevit.serving.network import TrainedNetwork
from scalablevit.serving.preprocessing import Preprocessing, finish_graph
from scalablevit.tasks.export import Part, Selection, Size
from scalablevit.tasks.registry import task_kind

FILE = "detector.onnx"
LEAST_SCORE = 0.05
"""Of the detections that are compared."""
MOST_PIXELS, MOST_SCORE, MOST_MASK = 1.0, 0.01, 0.05
"""Largest differences of corners, in pixels of the input, of scores, and of probabilities in masks."""
PREFIX = "network/"
"""Of the names inside the file that come from the network's own file: both may have `scores`."""
_MASKS = 3
"""Place of the masks among the outputs."""
_STRIP = 11
"""Rows of padding in the second comparison of each image, fewer than `tasks.detection.detector.STRIDE`."""


@dataclass(frozen=True)
class ExportedDetector:
    """What became of a detector."""

    file: Path
    compared: int
    """Detections of the network with a score of `LEAST_SCORE` or more."""
    unmatched: int
    """Those that one of the two has alone."""
    pixels: float
    """Largest difference of a corner."""
    score: float
    """Largest difference of a score."""
    mask: float = 0.0
    """Largest difference of a probability in a mask; 0 without masks."""

    @property
    def faithful(self) -> bool:
        """Whether the file detects what the network does."""
        limits = ((self.pixels, MOST_PIXELS), (self.score, MOST_SCORE), (self.mask, MOST_MASK))
        return self.unmatched == 0 and all(found <= most for found, most in limits)

    def facts(self) -> dict[str, float]:
        """Return the comparison by name."""
        return {name: value for name, value in vars(self).items() if name != "file"}

    def summary(self) -> str:
        """Return the comparison as a line."""
        if not self.compared and not self.unmatched:
            return (f"warning: {self.file.name} was not compared: the network detects nothing of score "
                    f"{LEAST_SCORE:g} or more on these images; name others")  # fmt: skip
        return (f"{self.file.name}: {self.compared} detections of score {LEAST_SCORE:g} or more compared, "
                f"{self.unmatched} unmatched; corners differ by {self.pixels:.2g} pixels at most, scores by "
                f"{self.score:.2g}, masks by {self.mask:.2g}")  # fmt: skip


@torch.no_grad()
def export_detector(trained: TrainedNetwork, network: Part, folder: Path, facts: Preprocessing) -> ExportedDetector:
    """Write `FILE`, for one image, and hold its boxes against the network's.

    Args:
        trained: on the CPU.
        network: of `serving.export.build_parts`; its ONNX file is in `folder`.
        folder: exists.
        facts: written into the file, see `finish_graph`.

    Raises:
        UserError: the exporter refuses the detector.
        OSError: the file cannot be written.
    """
    import onnx
    import onnx.compose

    size: Size = (network.inputs.shape[2], network.inputs.shape[3])
    how = task_kind(trained.stage.task.kind).export().selection
    if how is None:
        raise TypeError(f"{trained.stage.task.kind} selects nothing")
    selection = how(trained.network, size, trained.stage)
    selected, file = folder / ".selection.onnx", folder / FILE
    _trace(selection, network, size, selected)
    first, second = onnx.load(folder / f"{network.name}.onnx"), onnx.load(selected)
    selected.unlink()
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    first = onnx.compose.add_prefix(first, PREFIX, rename_inputs=False)
    between = [each.name for each in second.graph.input if each.name.startswith(PREFIX)]  # those that are used
    whole = onnx.compose.merge_models(
        first,
        second,
        io_map=[(name, name) for name in between],
        outputs=[each.name for each in second.graph.output],
    )
    whole.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # regions of several images would be mixed up
    onnx.save(whole, file)
    finish_graph(file, {0: "detections"}, facts)
    return _compare(trained, network.inputs, file, selection.first)


def _trace(selection: Selection, network: Part, size: Size, file: Path) -> None:
    """Write a selection as ONNX by torch's older exporter: the one that torch.export feeds refuses its loops."""
    outputs = tuple(each[:1] for each in network.expected)
    names = ["boxes", "scores", "labels", "masks"][: 4 if selection.two_stages else 3]
    with warnings.catch_warnings(), selection.tracing():
        warnings.simplefilter("ignore")  # the exporter's, about itself and about sizes that are meant to be fixed
        try:
            torch.onnx.export(
                selection,
                (outputs, torch.tensor(size)),
                str(file),
                dynamo=False,
                opset_version=OPSET,
                input_names=[*(PREFIX + name for name in network.outputs), "size"],
                output_names=names,
                dynamic_axes={name: {0: "detections"} for name in names},
            )
        except OSError:
            raise
        except Exception as error:
            raise UserError(
                f"the ONNX exporter refuses the detector: {type(error).__name__}: {str(error).splitlines()[0]}",
                where="model.name",
                fix="serve the registered model itself",
            ) from error


def _compare(trained: TrainedNetwork, pixels: Tensor, file: Path, first: int) -> ExportedDetector:
    """Hold the file against the network on each image whole, and with its last rows as padding."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    task: Any = trained.stage.task
    most: int = task.max_detections
    compared, alone, corners, scores, masks = 0, 0, [0.0], [0.0], [0.0]
    for image, strip in ((image, strip) for image in pixels for strip in (0, _STRIP)):
        height, width = image.shape[1] - strip, image.shape[2]
        expected = _expected(trained, image[:, :height], first)
        canvas = image.clone()
        canvas[:, height:] = torch.tensor(fill_color(trained.stage.data))[:, None, None]
        found = session.run(None, {"pixels": canvas[None].numpy(), "size": np.array([height, width])})
        for some, others in ((expected, found), (found, expected)):
            near = nearest(some, others, most)
            matched = near.others >= 0
            alone += int((~matched).sum())
            corners += near.corners[matched].tolist()
            scores += near.scores[matched].tolist()
            if len(some) > _MASKS and matched.any():
                apart = some[_MASKS][near.some[matched]] - others[_MASKS][near.others[matched]]
                masks.append(float(np.abs(apart).max()))
            compared += len(matched) if some is expected else 0
    return ExportedDetector(file, compared, alone, max(corners), max(scores), max(masks))


def _expected(trained: TrainedNetwork, image: Tensor, first: int) -> list[NDArray[Any]]:
    """The network's own boxes, scores, labels from 0 and masks, if there are any, of pixels (3, h, w)."""
    data = trained.stage.data
    (normalized,) = normalize(image.permute(1, 2, 0)[None].to(torch.uint8), data.mean, data.std)
    (found,) = trained.network([normalized])
    masks = [found["masks"][:, 0].numpy()] if "masks" in found else []
    return [found["boxes"].numpy(), found["scores"].numpy(), found["labels"].numpy() - first, *masks]


@dataclass(frozen=True)
class Nearest:
    """Detections, and the nearest of each in another list; a row each."""

    some: NDArray[np.int64]
    """Numbers of the detections that are compared."""
    others: NDArray[np.int64]
    """Numbers in the other list; -1 where it has none of the class."""
    corners: NDArray[np.float64]
    """Largest difference of a corner, in pixels; infinite where there is no other."""
    scores: NDArray[np.float64]
    """Differences of the scores, likewise."""


def nearest(some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], most: int) -> Nearest:
    """Return how far detections are from the nearest of the same class in another list.

    Args:
        some: boxes (n, 4), scores (n,), labels (n,); those with a score below `LEAST_SCORE` are left out.
        others: likewise, all of them.
        most: detections of an image. Where the others are as many, those of `some` that are hardly better than the last
            of them are left out too: which of nearly equal ones is the last is chance.
    """
    least = LEAST_SCORE if len(others[1]) < most else max(LEAST_SCORE, others[1].min() + MOST_SCORE)
    numbers = np.flatnonzero(np.asarray(some[1]) >= least)
    boxes, scores, labels = (np.asarray(each)[numbers] for each in some[:3])
    corners = np.abs(boxes[:, None] - others[0][None]).max(axis=2).astype(np.float64)
    by_score = np.abs(scores[:, None] - others[1][None]).astype(np.float64)
    apart = np.maximum(corners / MOST_PIXELS, by_score / MOST_SCORE)
    apart[labels[:, None] != others[2][None]] = np.inf
    # also where there are no others at all
    apart, corners, by_score = (
        np.pad(each, ((0, 0), (0, 1)), constant_values=np.inf) for each in (apart, corners, by_score)
    )
    best = apart.argmin(axis=1)
    best[np.isinf(apart.min(axis=1))] = -1
    rows = np.arange(len(best))
    return Nearest(numbers, best, corners[rows, best], by_score[rows, best])
