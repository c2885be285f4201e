"""A trained detector as one ONNX file, from pixels to boxes, compared with the network itself on real images."""

import math
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
from scalablevit.serving.export import OPSET, worst
from scalablevit.serving.network import TrainedNetwork
from scalablevit.serving.preprocessing import Preprocessing, finish_graph
from scalablevit.tasks.export import Part, Selection, Size
from scalablevit.tasks.registry import task_kind

FILE = "detector.onnx"
LEAST_SCORE = 0.05
"""Lowest score of the detections that are compared."""
MOST_PIXELS, MOST_SCORE, MOST_MASK = 1.0, 0.01, 0.05
"""Largest differences of corners, in pixels of the input, of scores, and of probabilities in masks."""
PREFIX = "network/"
"""Prefix of the names that come from the network's own ONNX file: both files may have `scores`."""
_MASKS = 3
"""Index of the masks among the outputs."""
_STRIP = 11
"""Rows of padding in the second comparison of each image, fewer than `tasks.detection.detector.STRIDE`."""


@dataclass(frozen=True)
class ExportedDetector:
    """An exported detector, and how its detections differ from the network's."""

    file: Path
    compared: int
    """Number of detections of the network with a score of `LEAST_SCORE` or more."""
    unmatched: int
    """Number of detections that only one of file and network has."""
    pixels: float
    """Largest difference of a corner, in pixels of the input."""
    score: float
    """Largest difference of a score."""
    mask: float = 0.0
    """Largest difference of a probability in a mask; 0 without masks."""

    @property
    def faithful(self) -> bool:
        """Return whether the file detects what the network does, within the limits above."""
        limits = ((self.pixels, MOST_PIXELS), (self.score, MOST_SCORE), (self.mask, MOST_MASK))
        return self.unmatched == 0 and all(math.isfinite(value) and value <= limit for value, limit in limits)

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
    """Write `FILE`, which takes one image at a time, and compare its detections with the network's.

    Args:
        trained: the trained network, on the CPU.
        network: the part `network` of `serving.export.build_parts`, whose ONNX file is in `folder`.
        folder: an existing folder.
        facts: preprocessing to write into the file, see `finish_graph`.

    Raises:
        UserError: the exporter refuses the detector.
        OSError: the file cannot be written.
        TypeError: the stage's kind of task selects no detections.
    """
    import onnx
    import onnx.compose

    size: Size = (network.inputs.shape[2], network.inputs.shape[3])
    build_selection = task_kind(trained.stage.task.kind).export().selection
    if build_selection is None:
        raise TypeError(f"{trained.stage.task.kind} selects nothing")
    selection = build_selection(trained.network, size, trained.stage)
    selected, file = folder / ".selection.onnx", folder / FILE
    _trace(selection, network, size, selected)
    first, second = onnx.load(folder / f"{network.name}.onnx"), onnx.load(selected)
    selected.unlink()
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    first = onnx.compose.add_prefix(first, PREFIX, rename_inputs=False)
    # an exporter drops inputs that the selection does not use
    between = [value.name for value in second.graph.input if value.name.startswith(PREFIX)]
    merged = onnx.compose.merge_models(
        first,
        second,
        io_map=[(name, name) for name in between],
        outputs=[value.name for value in second.graph.output],
    )
    merged.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # the file would mix up regions of several images
    onnx.save(merged, file)
    finish_graph(file, {0: "detections"}, facts)
    return _compare(trained, network.inputs, file, selection.first)


def _trace(selection: Selection, network: Part, size: Size, file: Path) -> None:
    """Write a selection as ONNX by torch's older exporter: the newer one, of torch.export, refuses its loops."""
    outputs = tuple(output[:1] for output in network.expected)
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
    """Compare the file with the network on each image of (N, 3, H, W), whole and with its last rows as padding."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    task: Any = trained.stage.task
    most: int = task.max_detections
    total = ExportedDetector(file, 0, 0, 0.0, 0.0)
    for image, strip in ((image, strip) for image in pixels for strip in (0, _STRIP)):
        height, width = image.shape[1] - strip, image.shape[2]
        expected = _network_detections(trained, image[:, :height], first)
        canvas = image.clone()
        canvas[:, height:] = torch.tensor(fill_color(trained.stage.data))[:, None, None]
        detected = session.run(None, {"pixels": canvas[None].numpy(), "size": np.array([height, width])})
        of_image = compare_detections(file, expected, detected, most)
        total = ExportedDetector(
            file,
            total.compared + of_image.compared,
            total.unmatched + of_image.unmatched,
            worst((total.pixels, of_image.pixels)),
            worst((total.score, of_image.score)),
            worst((total.mask, of_image.mask)),
        )
    return total


def compare_detections(
    file: Path, expected: Sequence[NDArray[Any]], detected: Sequence[NDArray[Any]], most: int
) -> ExportedDetector:
    """Compare a file's detections in an image with the network's; numbers that are not finite differ by NaN.

    Args:
        file: the file.
        expected: the network's boxes (n, 4) as corners in pixels, scores (n,), labels (n,), and masks (n, h, w) if
            there are any.
        detected: the file's, likewise.
        most: largest number of detections of an image.
    """
    boxes_scores_masks = (0, 1, _MASKS)
    # also of detections that are not compared, and of NaN scores, which no limit selects
    corners, scores, masks = (
        [0.0 if all(np.isfinite(side[index]).all() for side in (expected, detected) if index < len(side)) else np.nan]
        for index in boxes_scores_masks
    )
    compared, unmatched = 0, 0
    for some, others in ((expected, detected), (detected, expected)):
        near = nearest(some, others, most)
        matched = near.others >= 0
        unmatched += int((~matched).sum())
        corners += near.corners[matched].tolist()
        scores += near.scores[matched].tolist()
        if len(some) > _MASKS and matched.any():
            difference = some[_MASKS][near.some[matched]] - others[_MASKS][near.others[matched]]
            masks.append(float(np.abs(difference).max()))
        compared += len(matched) if some is expected else 0
    return ExportedDetector(file, compared, unmatched, worst(corners), worst(scores), worst(masks))


def _network_detections(trained: TrainedNetwork, image: Tensor, first: int) -> list[NDArray[Any]]:
    """Return the network's own boxes, scores, labels from 0 and masks, if there are any, for pixels (3, h, w)."""
    data = trained.stage.data
    (normalized,) = normalize(image.permute(1, 2, 0)[None].to(torch.uint8), data.mean, data.std)
    (detections,) = trained.network([normalized])
    masks = [detections["masks"][:, 0].numpy()] if "masks" in detections else []
    return [detections["boxes"].numpy(), detections["scores"].numpy(), detections["labels"].numpy() - first, *masks]


@dataclass(frozen=True)
class Nearest:
    """Detections, and for each of them the nearest one in another list: arrays with one entry for each detection."""

    some: NDArray[np.int64]
    """Indices of the detections that are compared."""
    others: NDArray[np.int64]
    """Indices of the nearest ones in the other list; -1 where it has none of the class."""
    corners: NDArray[np.float64]
    """Largest differences of a corner, in pixels; infinite where the other list has none of the class."""
    scores: NDArray[np.float64]
    """Differences of the scores; infinite where the other list has none of the class."""


def nearest(some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], most: int) -> Nearest:
    """Return how far detections are from the nearest of the same class in another list.

    Args:
        some: boxes (n, 4) as corners in pixels, scores (n,), labels (n,); those with a score below `LEAST_SCORE` are
            skipped.
        others: the other list, likewise (m, 4), (m,), (m,); all of it is used.
        most: largest number of detections of an image. Where the other list has as many, detections of `some` that are
            hardly better than its last one are skipped, too: which of nearly equal ones is the last is chance.
    """
    least = LEAST_SCORE if len(others[1]) < most else max(LEAST_SCORE, others[1].min() + MOST_SCORE)
    indices = np.flatnonzero(np.asarray(some[1]) >= least)
    boxes, scores, labels = (np.asarray(values)[indices] for values in some[:3])
    corners = np.abs(boxes[:, None] - others[0][None]).max(axis=2).astype(np.float64)
    by_score = np.abs(scores[:, None] - others[1][None]).astype(np.float64)
    distances = np.maximum(corners / MOST_PIXELS, by_score / MOST_SCORE)
    distances[labels[:, None] != others[2][None]] = np.inf
    # a column of infinities: argmin needs one where the other list is empty
    distances, corners, by_score = (
        np.pad(values, ((0, 0), (0, 1)), constant_values=np.inf) for values in (distances, corners, by_score)
    )
    best = distances.argmin(axis=1)
    best[np.isinf(distances.min(axis=1))] = -1
    rows = np.arange(len(best))
    return Nearest(indices, best, corners[rows, best], by_score[rows, best])
