"""The paper's Figure 1, measured: the receptive field of one IWSA layer against WSA and LEM."""

from collections.abc import Sequence
from pathlib import Path

import torch

from scalablevit.config.ablation import ablation_recipe
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.shipped import RECIPES
from scalablevit.models.attention import WindowAttention
from scalablevit.models.receptive_field import ReceptiveField, receptive_field
from scalablevit.models.scalablevit import ScalableViT
from scalablevit.paper.feature_maps import attention_name, blocks_of, capture_features
from scalablevit.paper.field_plot import describe_field, save_fields
from scalablevit.paper.loaded_models import Image, LoadedModel, load_images, load_models, preprocess
from scalablevit.paper.saving import save_note, save_rows
from scalablevit.tasks.registry import build_task

FRESH = "imagenet_scalablevit_small.yaml"
"""Recipe of the models with fresh weights."""
FRESH_ARMS = ("lim", "lem", "none")
"""Arms of the ablation that are compared with fresh weights."""


def draw_field(
    models: Sequence[str], overrides: Sequence[str], block: int, images: Path | None, out: Path, root: Path
) -> None:
    """Measure the receptive field of one layer of each model, print the metrics, and draw `field.png`.

    Args:
        models: registered models or finished runs; empty: ScalableViT-S with fresh weights, the same in all arms.
        overrides: of their recipes, as `key=value`.
        block: whose attention is measured, counted from 1.
        images: folder of the models' input images; None: built-in scenes.
        out: folder for the files, among them `field.csv` and `field.json` with the metrics.
        root: the platform's root.

    Raises:
        UserError: a model or an image does not exist, the block has no windows, or its map has too few of them.
    """
    pictures = load_images(images)
    loaded = load_models(models, overrides, root) if models else _fresh(overrides)
    fields = {}
    for model in loaded:
        layer = _layer(model, block)
        name = f"{attention_name(layer)}, block {block} of\n{model.name}"
        fields[name] = _measure(model, layer, list(pictures.values()))
        print(f"  {name}: {describe_field(fields[name])}".replace("\n", " "), flush=True)
    save_fields(fields, out / "field.png")
    rows = [_record(name, field) for name, field in fields.items()]
    save_rows(rows, out / "field.csv")
    save_note({"images": list(pictures), "block": block, "layers": rows}, out / "field.json")


def _fresh(overrides: Sequence[str]) -> list[LoadedModel]:
    """Return ScalableViT-S with LIM, with LEM and with neither, with the same random weights."""
    recipe = ablation_recipe(load_recipe(RECIPES / FRESH, overrides), FRESH_ARMS)
    loaded: list[LoadedModel] = []
    for arm, stage in zip(FRESH_ARMS, recipe.stages.values(), strict=True):
        torch.manual_seed(stage.training.seed)
        backbone = build_task(stage, ("any",)).build_model().eval()
        if not isinstance(backbone, ScalableViT):
            raise TypeError(f"{stage.model.name} is no ScalableViT")
        if loaded:  # the arm `none` lacks LIM's convolution; all other weights are in each arm
            first = loaded[0].backbone.state_dict()
            backbone.load_state_dict({name: first[name] for name in backbone.state_dict()})
        loaded.append(LoadedModel(f"{stage.model.name}, fresh weights ({arm})", stage, backbone))
    return loaded


def _layer(model: LoadedModel, block: int) -> WindowAttention:
    layers = [module.attn for module in blocks_of(model.backbone)]
    windowed = {number: layer for number, layer in enumerate(layers, start=1) if isinstance(layer, WindowAttention)}
    if block not in windowed:
        raise UserError(f"block {block} of {model.name} has no windows", where="--block",
                        fix=f"choose one of {', '.join(map(str, windowed))}")  # fmt: skip
    return windowed[block]


def _measure(model: LoadedModel, layer: WindowAttention, pictures: Sequence[Image]) -> ReceptiveField:
    """Return a layer's receptive field, averaged over the model's maps of the images."""
    inputs = [capture_features(model.backbone, [layer], preprocess(model, picture)[1])[0][0] for picture in pictures]
    if len({tokens.shape for tokens in inputs}) > 1:
        raise UserError("the images come to different sizes, whose maps cannot be averaged", where="--images",
                        fix="give images of one size")  # fmt: skip
    try:
        return receptive_field(layer, torch.cat(inputs))
    except ValueError as error:
        raise UserError(
            str(error), where="--block", fix="choose an earlier block, or larger images (see --help)"
        ) from None


def _record(name: str, field: ReceptiveField) -> dict[str, str | float | int]:
    low, high = field.reached()
    height, width = field.energy.shape[2:]
    return {
        "layer": name.replace("\n", " "),
        "share_outside_window": field.share_outside(),
        "radius_95_tokens": field.radius(),
        "reached_least": low,
        "reached_most": high,
        "map_tokens": height * width,
    }
