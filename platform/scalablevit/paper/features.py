"""The paper's Figure 2: images next to the feature maps of models that differ in their attention."""

from collections.abc import Sequence
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.paper.feature_maps import (
    Row,
    attention_name,
    blocks_of,
    capture_features,
    contrast,
    save_features,
    stage_ends,
)
from scalablevit.paper.loaded_models import LoadedModel, load_images, load_models, preprocess, recipe_differences
from scalablevit.paper.saving import save_note


def draw_features(
    models: Sequence[str], overrides: Sequence[str], blocks: Sequence[int], images: Path | None, out: Path, root: Path
) -> None:
    """Draw `features.png`, and describe it in `features.json`.

    Args:
        models: registered models or finished runs.
        overrides: of their recipes, as `key=value`.
        blocks: counted from 1; empty: `stage_ends` of the first model.
        images: folder of images; None: built-in scenes.
        out: folder for the files.
        root: the platform's root.

    Raises:
        UserError: a model, an image or a block is not there.
    """
    pictures = load_images(images)
    loaded = load_models(models, overrides, root)
    blocks = list(blocks) or stage_ends(loaded[0].backbone)
    for model in loaded:
        _check_blocks(model, blocks)
    differ = recipe_differences(loaded)
    _print_differences(differ, loaded)
    rows = []
    for picture in pictures.values():
        for model in loaded:
            image, normalised = preprocess(model, picture)
            chosen = [blocks_of(model.backbone)[number - 1] for number in blocks]
            outputs = [contrast(output[0]) for _, output in capture_features(model.backbone, chosen, normalised)]
            titles = [
                f"block {number}: {attention_name(block.attn)}, {values.shape[0]} x {values.shape[1]}"
                for number, block, values in zip(blocks, chosen, outputs, strict=True)
            ]
            rows.append(Row(model.name, image, dict(zip(titles, outputs, strict=True))))
    save_features(rows, out / "features.png")
    note = {
        "images": list(pictures),
        "blocks": blocks,
        "models": {
            model.name: [attention_name(blocks_of(model.backbone)[number - 1].attn) for number in blocks]
            for model in loaded
        },
        "recipes_differ_in": differ,
    }
    save_note(note, out / "features.json")


def _check_blocks(model: LoadedModel, blocks: Sequence[int]) -> None:
    count = len(blocks_of(model.backbone))
    if missing := [number for number in blocks if not 1 <= number <= count]:
        raise UserError(f"{model.name} has {count} blocks, no block {', '.join(map(str, missing))}", where="--blocks",
                        fix=f"name blocks from 1 to {count}")  # fmt: skip


def _print_differences(differ: dict[str, list[str]], loaded: Sequence[LoadedModel]) -> None:
    """Print the recipes' differences, and whether they are in `model.options` alone."""
    if len(loaded) < 2:
        return
    other = [key for key in differ if not key.startswith("model.options.")]
    if other:
        print(f"  note    not trained alike: the recipes also differ in {', '.join(other)}")
    for key, values in differ.items():
        print(f"  {key}: {'; '.join(f'{model.name} {value}' for model, value in zip(loaded, values, strict=True))}")
