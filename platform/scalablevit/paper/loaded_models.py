"""Trained ScalableViTs and their input images, for the analyses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scalablevit.config.data import MAX_PIXELS
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.run_hash import hashed_part
from scalablevit.data.decoding import BadSample, read_image
from scalablevit.data.mixing import normalize
from scalablevit.data.shapes import draw_scene
from scalablevit.data.sources.files import list_images
from scalablevit.data.transforms import eval_transform
from scalablevit.models.scalablevit import ScalableViT
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.serving.network import load_trained
from scalablevit.tracking.params import flatten

IMAGES = 4
"""Most images of an analysis."""
SCENE_SIDE = 256
"""Side of the built-in images in pixels; they are then resized like others."""

Image = NDArray[np.uint8]
"""(h, w, 3), RGB."""


@dataclass(frozen=True)
class LoadedModel:
    """A trained model: its backbone without neck and heads, on the CPU and in eval mode."""

    name: str
    stage: Stage
    backbone: ScalableViT


def load_models(names: Sequence[str], overrides: Sequence[str], root: Path) -> list[LoadedModel]:
    """Load registered models and finished runs.

    Raises:
        UserError: there is no such model, it is no ScalableViT, a name occurs twice, or as `trained_recipe`.
    """
    if len(set(names)) < len(names):
        raise UserError(f"a model is named twice in {' '.join(names)}", where="MODEL", fix="name each once")
    return [_load(name, overrides, root) for name in names]


def _load(name: str, overrides: Sequence[str], root: Path) -> LoadedModel:
    weights, config, sha256 = find_model(name, overrides, root)
    stage = trained_recipe("analyse", config, overrides, name).stages["analyse"]
    trained = load_trained(stage, config["classes"], weights, torch.device("cpu"))
    backbone = trained.task.backbone(trained.network)
    backbone = getattr(backbone, "body", backbone)
    if not isinstance(backbone, ScalableViT):
        raise UserError(f"{stage.model.name} is no ScalableViT", where=name, fix="name a model with one as backbone")
    print(f"  model   {name}: {stage.task.kind}, {stage.model.name}, sha256 {sha256[:12]}", flush=True)
    return LoadedModel(name, stage, backbone)


def load_images(folder: Path | None) -> dict[str, Image]:
    """Return the first images of a folder, or scenes of the built-in shapes, by name.

    Args:
        folder: of the images; None: the built-in shapes.

    Raises:
        UserError: there are no images, or one cannot be decoded.
    """
    if folder is None:
        print(f"  images  {IMAGES} scenes of the built-in shapes")
        return {f"scene {seed}": draw_scene(np.random.default_rng(seed), SCENE_SIDE)[0] for seed in range(IMAGES)}
    folder = folder.expanduser()
    names, _ = list_images(folder)
    print(f"  images  {', '.join(names[:IMAGES])}: {min(IMAGES, len(names))} of {len(names)}", flush=True)
    try:
        return {name: read_image(folder / name, MAX_PIXELS) for name in names[:IMAGES]}
    except BadSample as bad:
        raise UserError(bad.reason, where=bad.path, fix="remove the file, or name other images") from None


def preprocess(model: LoadedModel, picture: Image) -> tuple[Image, Tensor]:
    """Return an image after the resizing and crop of evaluation, uint8 (h, w, 3), and normalized (1, 3, h, w)."""
    data = model.stage.data
    image: Image = eval_transform(data)(image=picture)["image"]
    return image, normalize(torch.from_numpy(image)[None], data.mean, data.std)


def recipe_differences(loaded: Sequence[LoadedModel]) -> dict[str, list[str]]:
    """Return the keys of the recipes' hashed parts in which the models differ, with each model's value as text."""
    recipes = [flatten(hashed_part(model.stage)) for model in loaded]
    keys = sorted({key for recipe in recipes for key in recipe})
    values = {key: [str(recipe.get(key, "not given")) for recipe in recipes] for key in keys}
    return {key: of_models for key, of_models in values.items() if len(set(of_models)) > 1}
