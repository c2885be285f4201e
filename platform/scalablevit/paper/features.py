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
from scalablevit.paper.loaded_models import Subject, load_images, load_subjects, preprocess, recipe_differences
from scalablevit.paper.saving import save_note


def draw_features(
    models: Sequence[str], overrides: Sequence[str], blocks: Sequence[int], images: Path | None, out: Path, root: Path
) -> None:
    """Draw `features.png` and say in `features.json` what it shows.

    Args:
        models: registered models or finished runs.
        overrides: of their recipes.
        blocks: counted from 1; none: `stage_ends` of the first model.
        images: folder; None: built-in scenes.
        out: folder for the files.
        root: the platform's root.

    Raises:
        UserError: a model, an image or a block is not there.
    """
    found = load_images(images)
    subjects = load_subjects(models, overrides, root)
    blocks = list(blocks) or stage_ends(subjects[0].backbone)
    for subject in subjects:
        _check_blocks(subject, blocks)
    differ = recipe_differences(subjects)
    _say(differ, subjects)
    rows = []
    for picture in found.values():
        for subject in subjects:
            image, normalised = preprocess(subject, picture)
            chosen = [blocks_of(subject.backbone)[number - 1] for number in blocks]
            outputs = [contrast(answer[0]) for _, answer in capture_features(subject.backbone, chosen, normalised)]
            titles = [
                f"block {number}: {attention_name(block.attn)}, {values.shape[0]} x {values.shape[1]}"
                for number, block, values in zip(blocks, chosen, outputs, strict=True)
            ]
            rows.append(Row(subject.name, image, dict(zip(titles, outputs, strict=True))))
    save_features(rows, out / "features.png")
    note = {
        "images": list(found),
        "blocks": blocks,
        "models": {
            subject.name: [attention_name(blocks_of(subject.backbone)[number - 1].attn) for number in blocks]
            for subject in subjects
        },
        "recipes_differ_in": differ,
    }
    save_note(note, out / "features.json")


def _check_blocks(subject: Subject, blocks: Sequence[int]) -> None:
    count = len(blocks_of(subject.backbone))
    if missing := [number for number in blocks if not 1 <= number <= count]:
        raise UserError(f"{subject.name} has {count} blocks, no block {', '.join(map(str, missing))}", where="--blocks",
                        fix=f"name blocks from 1 to {count}")  # fmt: skip


def _say(differ: dict[str, list[str]], subjects: Sequence[Subject]) -> None:
    """Whether the models differ in their attention alone."""
    if len(subjects) < 2:
        return
    other = [key for key in differ if not key.startswith("model.options.")]
    if other:
        print(f"  note    not trained alike: the recipes also differ in {', '.join(other)}")
    for key, values in differ.items():
        print(f"  {key}: {'; '.join(f'{each.name} {value}' for each, value in zip(subjects, values, strict=True))}")
