"""Export a registered model or a finished run to ONNX and torch.export archives."""

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from scalablevit.cli.arguments import add_model, add_root
from scalablevit.cli.prediction_input import find_images
from scalablevit.config.errors import UserError
from scalablevit.config.root import platform_root
from scalablevit.data.names import printable
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.runs.output_dir import refuse_unusable, write_folder

if TYPE_CHECKING:
    from scalablevit.serving.export import Exported

NOTE = "export.json"
IMAGES = 4
"""Most images that the exports are checked on."""
MOST_PIXELS = 4096 * 8192
"""Most pixels of an input by --size: as many as the largest input of a detection recipe."""
EPILOG = f"""\
The model's weights and recipe are read; no code of the registry is run.

Each part is written as <part>.onnx and <part>.pt2 (torch.export). Its outputs for the first images of IMAGES must be
those of the model, within 0.001 of the largest output; ONNX Runtime computes on the CPU. Inputs are RGB pixels,
float32 (N, 3, H, W) from 0 to 255, prepared as in evaluation (resized, and cropped for classification).

The batch size N is dynamic. So are H and W, from 33 pixels, for classification and segmentation without --size; the
outputs are then compared at four sizes, and a model that cannot be exported with dynamic sizes is refused: give --size.
Detection always has one size.
  classification  network: logits (N, classes)
  segmentation    network: logits (N, classes, H, W)
  detection       detector.onnx: boxes (n, 4), scores, labels and, of Mask R-CNN, a 28 x 28 mask in each box, of
                  one image, given with its height and width without padding; ONNX only.
                  network: the pyramid's maps, and scores and box offsets at every anchor of each level; of Mask R-CNN
                  also box_head and mask_head, which take pooled regions: for users with a selection (NMS) of
                  their own.
{NOTE} in DIR names classes, size, inputs, outputs, differences and preprocessing (mean, std, resizing, crop, ...). Each
ONNX file that takes pixels has the preprocessing in its metadata_props; the page "Serve and export" of the
documentation has Python that follows it.

Exit codes: 0 all outputs are the model's; 1 an export's outputs differ: do not use it; 2 something that you can fix, as
a model that cannot be exported; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_model(parser)
    parser.add_argument(
        "images",
        metavar="IMAGES",
        type=Path,
        help="images to check the exports on: a folder, one image, or a list (.txt)",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="new or empty folder for the exports")
    parser.add_argument(
        "--size",
        metavar="HxW",
        help="fixed height x width in pixels, multiples of 32 (default: any size; detection: its evaluation size)",
    )
    add_root(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be done, write nothing"
    )


def run(options: argparse.Namespace) -> int:
    """Export, check and print; see `add_arguments`.

    Raises:
        UserError: the images, --out or --size are of no use, there is no such model, or it cannot be exported.
    """
    root = platform_root(options.root, make=False)
    found, out = find_images(options.images.expanduser().absolute()), options.out.expanduser()
    folder, names = found.folder, found.names
    refuse_unusable(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{printable(out)} is not empty", where="--out", fix="name a new or empty folder")
    given = _size(options.size)
    weights, config, sha256 = find_model(options.model, options.overrides, root)
    stage = trained_recipe("export", config, options.overrides, options.model).stages["export"]
    # imported late: a mistake above is reported before torch is loaded
    import torch

    from scalablevit.data.decoding import BadSample, mean_color, read_image
    from scalablevit.serving.export import (
        SMALLEST,
        build_parts,
        default_size,
        export_part,
        has_selection,
        supports_any_size,
    )
    from scalablevit.serving.export_detector import export_detector
    from scalablevit.serving.network import load_trained
    from scalablevit.serving.preprocessing import describe_preprocessing

    size = given or default_size(stage)
    fixed = given is not None or not supports_any_size(stage)
    print(f"  model  {options.model}: {stage.task.kind}, {stage.model.name}, sha256 {sha256[:12]}")
    if not fixed and min(size) < SMALLEST:
        raise UserError(
            f"the model's inputs have {size[0]}x{size[1]} pixels; exports for any size begin at {SMALLEST}x{SMALLEST}",
            where="--size",
            fix=f"ask for one size: --size {size[0]}x{size[1]}",
        )
    shape = f"{size[0]}, {size[1]}" if fixed else "H, W"
    sizes = "of this size alone" if fixed else f"of any size from {SMALLEST}x{SMALLEST}, usually {size[0]}x{size[1]}"
    print(f"  input  (N, 3, {shape}), {sizes}; checked on {min(IMAGES, len(names))} of {len(names)} images", flush=True)
    facts = describe_preprocessing(stage, config["classes"], size if fixed else None)
    if fixed and facts.center_crop and set(size) != {facts.center_crop}:
        side = facts.center_crop
        print(f"  note   evaluation crops to {side}x{side}, as center_crop says: no metric is of {size[0]}x{size[1]}, "
              "and how an image comes to that is not said")  # fmt: skip
    if options.dry_run:
        print(f"dry run: nothing was written; the exports and {NOTE} would be in {printable(out.absolute())}")
        return 0
    try:
        data = stage.data
        images = [read_image(folder / name, data.max_pixels, mean_color(data.mean)) for name in names[:IMAGES]]
    except BadSample as bad:
        raise UserError(bad.reason, where=bad.path, fix="remove the file, or name other images") from None
    exported = []
    with write_folder(out) as target:
        trained = load_trained(stage, config["classes"], weights, torch.device("cpu"))
        parts = build_parts(trained, images, size, fixed=fixed)
        for part in parts:
            own = facts if part.input_name == "pixels" else None  # heads take maps, which nothing prepares
            exported.append(export_part(part, target, f"{options.model} ({stage.model.name})", own))
            print(_line(exported[-1]), flush=True)
        note = {"model": options.model, "weights_sha256": sha256, "task": stage.task.kind, "classes": config["classes"],
                "sizes": "one" if fixed else "any", "size": size, "smallest": size if fixed else [SMALLEST, SMALLEST],
                "torch": torch.__version__, "preprocessing": vars(facts),
                "parts": [_facts(export) for export in exported]}  # fmt: skip
        faithful = all(export.faithful for export in exported)
        if has_selection(stage):
            detector = export_detector(trained, parts[0], target, facts)
            print(f"  {detector.summary()}", flush=True)
            note["detector"] = detector.facts()
            faithful = faithful and detector.faithful
        (target / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
        files = sorted(file.name for file in target.iterdir())
    print(f"exported {options.model}: {', '.join(files)} are in {printable(out.absolute())}")
    if not faithful:
        print("an export's outputs differ from the model's: do not use it")
        return 1
    return 0


def _size(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    sides = re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", given)
    if sides is None:
        raise UserError(f"{given!r} is no size", where="--size", fix="write height and width in pixels, as in 512x512")
    height, width = int(sides[1]), int(sides[2])
    if height * width > MOST_PIXELS:
        raise UserError(
            f"{given} has more than {MOST_PIXELS} pixels",
            where="--size",
            fix="choose a size that the model was made for",
        )
    return height, width


def _line(exported: "Exported") -> str:
    from scalablevit.serving.export import worst

    lines = [f"  {exported.part.name}: largest output {exported.largest:.3g}"]
    for file, by_inputs in exported.by_inputs().items():
        compared = ", ".join(f"{shape} {difference:.2g}" for shape, difference in by_inputs.items())
        lines.append(f"    {file} differs by {worst(by_inputs.values()):.3g} at most ({compared})")
    return "\n".join(lines)


class PartNote(TypedDict):
    """What export.json has about a part."""

    name: str
    input: dict[str, list[str | int]]
    """Its name and shape; dynamic dimensions are letters."""
    outputs: dict[str, list[str | int]]
    largest_difference: dict[str, dict[str, float]]
    """Largest difference from the network's own outputs, by file and shape of the input."""
    largest_output: float


def _facts(exported: "Exported") -> PartNote:
    part = exported.part
    sides = ("H", "W") if part.others else tuple(part.inputs.shape[2:])
    return {
        "name": part.name,
        "input": {part.input_name: ["N", part.inputs.shape[1], *sides]},
        "outputs": {
            name: ["N", *(("H", "W")[axis] if part.others and axis >= 0 else side
                          for axis, side in enumerate(output.shape[1:], start=-1))]
            for name, output in zip(part.outputs, part.expected, strict=True)
        },
        "largest_difference": exported.by_inputs(),
        "largest_output": exported.largest,
    }  # fmt: skip
