"""A trained model as a torch module, from the registry or a run folder to predictions."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image as PillowImage
from torch import Tensor, nn

from scalablevit.api.images import GIVE, Image, Images, decode_images
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.root import platform_root
from scalablevit.config.stored import ModelConfig
from scalablevit.config.task import SHOWN_SCORE
from scalablevit.config.task_info import task_info
from scalablevit.data.transforms import prepare_image
from scalablevit.pipeline.trained_models import find_model, find_run_model, trained_recipe
from scalablevit.run_files import WEIGHTS
from scalablevit.runs.result import without_secrets
from scalablevit.serving.network import TrainedNetwork, load_trained
from scalablevit.tasks.output import PredictionDict
from scalablevit.tasks.predictions import Prediction
from scalablevit.tasks.registry import task_kind

SCRIPT = "predict"
"""The name of the model's stage in errors, as in `pipelines/predict.py`."""


class Model(nn.Module):
    """A trained network with its classes, its preparation of images and its predictions; made by `load_model`.

    It is a torch module like any other: `to`, `eval`, `state_dict` and gradients through `forward` work. It is loaded
    in evaluation mode, which `predict` needs.

    Attributes:
        network: the plain torch module of the task: a timm classifier, a segmentor or torchvision's detector.
        classes: names, in the order of the network's outputs.
        task: `classification`, `segmentation` or `detection`.
        stage: the part of the recipe that it was trained by.
    """

    def __init__(self, trained: TrainedNetwork) -> None:
        super().__init__()
        self.network = trained.network
        self.classes: tuple[str, ...] = trained.task.classes
        self.task: str = trained.stage.task.kind
        self.stage: Stage = trained.stage
        self._predictor = trained.predictor
        self.eval()  # a fresh module is in training mode

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.network.parameters()).device

    def forward(self, images: Tensor) -> Any:
        """Compute the network's outputs.

        Args:
            images: normalized float32 (N, 3, H, W), as `preprocess` returns them.

        Returns:
            Classification: logits (N, classes). Segmentation: logits (N, classes, h, w) at a quarter of the input's
                height and width. Detection, in evaluation mode: for each image a dict of `boxes` (n, 4) in the input's
                pixels, `scores` (n,), `labels` (n,) as the head numbers them and, of Mask R-CNN, `masks` (n, 1, 28, 28)
                within the boxes.
        """
        return self.network(list(images) if task_info(self.task).takes_lists else images)

    def preprocess(self, images: Images) -> Tensor:
        """Prepare images as the model's evaluation does.

        Args:
            images: as for `predict`.

        Returns:
            Normalized float32 (N, 3, H, W) on the model's device. For classification, H and W are
                `stage.data.image_size` pixels; else each image is scaled to `short_side` and `long_side`, keeping its
                aspect ratio.

        Raises:
            UserError: one is no image, there is none, or they have different sizes after the preparation.
        """
        data = self.stage.data
        decoded = list(decode_images(images, data))
        if not decoded:
            raise UserError("there is no image", where="images", fix=GIVE)
        prepared = [prepare_image(self.stage, image, self.device) for image in decoded]
        sizes = sorted({tuple(image.shape[-2:]) for image in prepared})
        if len(sizes) != 1:
            raise UserError(
                f"{len(prepared)} images come out in {len(sizes)} sizes (height, width) {sizes}; a tensor has one",
                where="images",
                fix="prepare images of different shapes one by one; predict() takes them together",
            )
        return torch.cat(prepared)

    def predict(self, images: Images) -> list[Prediction]:
        """Predict, one image after another: the same as `pipelines/predict.py` on the same files and device.

        Args:
            images: one image or a list of them, each a file's path, an image of Pillow or an RGB array uint8 (H, W, 3),
                in any sizes; or an array uint8 (N, H, W, 3).

        Returns:
            For each image, by the task, a `ClassificationPrediction` (label, probability of each class), a
                `SegmentationPrediction` (mask of class indices) or a `DetectionPrediction` (boxes, scores, labels,
                masks).

        Raises:
            UserError: one is no image, by its path or index; or the model is in training mode.
        """
        if any(module.training for module in self.modules()):
            raise UserError("the model is in training mode, in which it predicts otherwise", fix="call model.eval()")
        device = self.device
        with torch.inference_mode():
            return [
                self._predictor.predict(self.network, image, device) for image in decode_images(images, self.stage.data)
            ]

    def draw(self, image: Image, prediction: Prediction, *, min_score: float = SHOWN_SCORE) -> PillowImage.Image:
        """Draw a prediction on its image; for segmentation and detection as in the overlays of `scalablevit predict`.

        Args:
            image: the image that was predicted, as for `predict`.
            prediction: that `predict` returned for it.
            min_score: detections with a lower score, 0 to 1, are left out.

        Returns:
            An RGB image of Pillow. Classification: the most probable classes below the image. Segmentation: the mask
                over the image, and its classes below. Detection: boxes, and masks if there are any, with names and
                scores. Images of less than 480 pixels are enlarged, those of more than 1600 are shrunk.

        Raises:
            UserError: the image is none or has another size than the prediction, the prediction is not of this model,
                or its kind of task, which is your own, draws none.
        """
        kind = task_kind(self.task)
        values: PredictionDict = getattr(prediction, "to_dict", dict)()
        if kind.class_column not in values or getattr(prediction, "classes", self.classes) != self.classes:
            raise UserError(
                f"is a {type(prediction).__name__}, which is no prediction of this model",
                where="prediction",
                fix="give one of the predictions that predict() of this model returns",
            )
        (pixels,) = decode_images([image], self.stage.data)
        drawn = kind.draw_prediction(pixels, values, self.classes, min_score)
        if drawn is None:
            raise UserError(
                f"predictions of task {self.task!r} cannot be drawn",
                fix="let the task's `TaskKind` have `draw_prediction`",
            )
        return drawn


def load_model(
    source: str | Path, *overrides: str, root: str | Path | None = None, device: str | torch.device = "cpu"
) -> Model:
    """Load a registered model or a finished run.

    The weights are read from safetensors and checked against the SHA-256 that training recorded, the rest is read from
    JSON: nothing is unpickled, and no code of the registry runs.

    Args:
        source: `models:/<name>@<alias>`, `models:/<name>/<version>`, a run's folder (a `Path`, or text with a slash),
            or the name of a run below `<root>/runs`.
        overrides: of the model's own recipe, such as "task.score_threshold=0.5"; "tracking.uri=http://<server>" says
            where the registry is (default: mlflow.db in the root).
        root: the platform's root; None: SCALABLEVIT_ROOT, else ~/scalablevit.
        device: of the weights, such as "cuda" or "cuda:1".

    Raises:
        UserError: there is no such model, its files differ from their sums, an override is wrong, or this machine has
            no such device.
    """
    target = _check_device(device)
    weights, config, _ = _find(source, overrides, platform_root(None if root is None else str(root), make=False))
    stage = without_secrets(trained_recipe(SCRIPT, config, overrides, str(source)).stages[SCRIPT])
    with torch.random.fork_rng(
        devices=[]
    ):  # making fresh weights, soon replaced, must not advance the user's random numbers
        return Model(load_trained(stage, config["classes"], weights, target))


def predict(
    source: str | Path,
    images: Images,
    *overrides: str,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> list[Prediction]:
    """Load a model and predict: `load_model(source, ...).predict(images)`.

    For more than one call, load the model once.

    Args:
        source: as for `load_model`.
        images: as for `Model.predict`.
        overrides: as for `load_model`.
        root: as for `load_model`.
        device: as for `load_model`.

    Raises:
        UserError: as `load_model` and `Model.predict`.
    """
    return load_model(source, *overrides, root=root, device=device).predict(images)


def _find(source: str | Path, overrides: tuple[str, ...], root: Path) -> tuple[str, ModelConfig, str]:
    """Return the weights file, `config.json` and the weights' SHA-256 of a model by whatever names it.

    Raises:
        UserError: there is no such model.
    """
    name = str(source)
    if name.startswith("models:/") or (isinstance(source, str) and "/" not in name):
        return find_model(name, overrides, root)
    if "://" in name:
        raise UserError(
            f"{name!r} is an address",
            where="source",
            fix="give models:/<name>@<alias> with tracking.uri=<address>, or a run's folder on this machine",
        )
    folder = Path(source).expanduser().absolute()
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"there is no {WEIGHTS}: no run has finished in this folder",
            where=str(folder),
            fix="give a run's folder, <root>/runs/<run>, or models:/<name>@<alias>",
        )
    return find_run_model(folder, name)


def _check_device(device: str | torch.device) -> torch.device:
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without the device
        raise UserError(
            f"torch cannot use {str(device)!r} here: {str(error).splitlines()[0]}",
            where="device",
            fix='give "cpu", or "cuda" on a machine with a GPU',
        ) from None
    return checked
