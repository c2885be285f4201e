"""The paper's analysis from the command line: feature maps, receptive fields, the ablation, and the table of costs."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from scalablevit.cli.arguments import add_recipe, add_root
from scalablevit.config.ablation import ARMS
from scalablevit.config.commands import command_name, short_name
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_and_import
from scalablevit.config.overrides import Scope
from scalablevit.config.root import platform_root, refuse_session_folder
from scalablevit.config.shipped import DEMO, RECIPES
from scalablevit.data.names import printable
from scalablevit.runs.output_dir import refuse_unwritable

FILES = {
    "features": ("features.png", "features.json"),
    "field": ("field.png", "field.csv", "field.json"),
    "ablation": ("ablation.csv", "ablation.json"),
    "table": ("costs.csv", "costs.json"),
}
"""Files that each verb writes into --out."""
MODELS = """\
MODEL is models:/<name>@<alias>, models:/<name>/<version> or the name of a run under <root>/runs: a ScalableViT of any
task. key=value overrides a value of all their recipes: tracking.uri=http://..., or for larger images
data.eval_resize=224 data.image_size=224 (segmentation and detection: data.short_side=224 data.long_side=448).
Without --images, four images of the built-in shapes are used; else the first four images of the folder."""
EXIT = "Exit codes: 0 done; 2 something that you can fix."
EPILOG = """\
The paper's attention: windows (WSA, window self-attention), alone or with a convolution between them (LIM, the local
interactive module: together IWSA, interactive WSA) or within them (LEM, the arm to compare it with), in turn with SSA,
scalable self-attention.

Every verb takes --out, --overwrite and --root; <verb> --help says what it shows and writes."""
EPILOGS = {
    "features": f"""\
The paper's Figure 2: an image next to its feature maps after chosen blocks, a row for each model. A map shows each
token's distance from the mean of all tokens. Train models that differ in attention alone with
`{short_name("analyse")} ablation --arms lim,wsa_for_ssa`; what else differs between the models is named. Blocks are
counted from 1 through all stages; by default the last of each stage but the last one: 2, 4 and 24 in ScalableViT-S, as
in the paper.

{MODELS}

{EXIT}""",
    "field": f"""\
The paper's Figure 1 claims that LIM makes the receptive field of one IWSA layer global. Measured here: the gradient
energy (squared Jacobian) of the outputs of one window in the middle of the map, at every input token. The number is the
share of energy from outside the window; next to it the radius that holds 95 % of the energy, and how many tokens an
output depends on at all. Without MODEL: ScalableViT-S with fresh weights, the same ones for WSA, LEM and IWSA.

{MODELS}

{EXIT}""",
    "ablation": f"""\
The paper's Table 1 on any recipe: trains all of its stages once for each arm (a variant of the attention, all else
equal), under one parent run, and writes parameters, FLOPs and best metrics as one table. Arms:
  lim          the standard model: IWSA and SSA in turn
  lem          IWSA's convolution kept within each window (LEM)
  none         no convolution: plain windows (WSA) in IWSA's place
  wsa_for_ssa  plain windows (WSA) in SSA's place
lim and lem start from the same random weights; the others have other layers, so that only their data is the same.
Overrides are dotted recipe keys, as for {command_name("full")}. The same command again continues where it stopped.
The paper's own: --recipe ablation_scalablevit_small --arms lim,lem

Exit codes: 0 done; 1 a failure while running; 2 something that you can fix; 130 interrupted.""",
    "table": f"""\
Counts parameters and FLOPs of ScalableViT S, B and L as classifier and under every dense head, as the shipped recipes
build them, and sets the paper's values next to them. Trains nothing.

{EXIT}""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    features = _verb(verbs, "features", "Figure 2: images next to feature maps after chosen blocks")
    features.add_argument("given", nargs="+", metavar="MODEL|key=value")
    features.add_argument(
        "--blocks",
        type=_numbers,
        default=[],
        metavar="2,4,24",
        help="blocks, counted from 1 (default: the last of each stage but the last one)",
    )
    field = _verb(verbs, "field", "Figure 1: the receptive field of one IWSA layer against WSA and LEM")
    field.add_argument("given", nargs="*", metavar="MODEL|key=value")
    field.add_argument(
        "--block", type=int, default=1, metavar="N", help="block of the layer, counted from 1 (default 1)"
    )
    for parser_of_verb in (features, field):
        parser_of_verb.add_argument(
            "--images", type=Path, metavar="DIR", help="folder of images (default: the built-in shapes)"
        )
    ablation = _verb(verbs, "ablation", "Table 1: train arms that differ in their attention alone")
    ablation.add_argument("given", nargs="*", metavar="key=value", help="override a value of the recipe")
    add_recipe(ablation)
    ablation.add_argument("--arms", type=_names, default=["lim", "lem", "none"], metavar="A,B",
                          help=f"of {', '.join(ARMS)} (default: lim,lem,none)")  # fmt: skip
    ablation.add_argument("--seeds", type=_numbers, default=[], metavar="0,1,2",
                          help="train each arm with each of these (default: the recipe's own seed)")  # fmt: skip
    ablation.add_argument("--stages", type=_names, default=[], metavar="A,B",
                          help="of the recipe, with those that they start from (default: all)")  # fmt: skip
    ablation.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would run, start nothing"
    )
    _verb(verbs, "table", "parameters and FLOPs of all backbones and heads next to the paper's")


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str
) -> argparse.ArgumentParser:
    """Add a verb with the arguments that all verbs have."""
    verb = verbs.add_parser(
        name, help=what, description=what[0].upper() + what[1:] + ".", epilog=EPILOGS[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"folder for {', '.join(FILES[name])}")
    verb.add_argument("--overwrite", action="store_true", help="replace these files where they are there already")
    add_root(verb)
    return verb


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different names, as in lim,lem")
    return names


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",") if part.isdecimal() and part.isascii()]
    if len(set(numbers)) < text.count(",") + 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different whole numbers, as in 0,1,2")
    return numbers


def run(options: argparse.Namespace) -> int:
    """Draw, train or count, by the verb; see `add_arguments`.

    Raises:
        UserError: --out cannot take the files, or has them already; or a recipe, model, image or cluster does not fit.
    """
    out = options.out.expanduser().absolute()
    _check_out(out, FILES[options.verb], overwrite=options.overwrite)
    root = platform_root(options.root, make=options.verb == "ablation")
    names = [argument for argument in getattr(options, "given", []) if "=" not in argument]
    overrides = [argument for argument in getattr(options, "given", []) if "=" in argument]
    # imported late: a mistake above is reported before torch is loaded
    match options.verb:
        case "features":
            from scalablevit.paper.features import draw_features

            draw_features(names, overrides, options.blocks, options.images, out, root)
        case "field":
            from scalablevit.paper.field import draw_field

            draw_field(names, overrides, options.block, options.images, out, root)
        case "ablation":
            _ablation(options, out, root)
        case "table":
            from scalablevit.paper.costs import save_costs

            save_costs(RECIPES, out)
    if not getattr(options, "dry_run", False):
        print(f"written: {', '.join(FILES[options.verb])} in {printable(out)}")
    return 0


def _ablation(options: argparse.Namespace, out: Path, root: Path) -> None:
    path = options.recipe or RECIPES / DEMO
    if options.recipe is None:
        print(f"no --recipe given: the demo, {path.name}", flush=True)
    scope = Scope(f"{short_name('analyse')} ablation trains", names=tuple(options.stages), note=print)
    recipe = load_and_import(path, options.given, scope)
    from scalablevit.paper.ablation import run_ablation

    run_ablation(recipe, options.arms, options.seeds, options.stages, out, root, dry_run=options.dry_run)


def _check_out(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a folder that could not take the files, before anything is trained.

    Raises:
        UserError: it cannot be written, or has one of the files already.
    """
    refuse_session_folder(str(out), "--out")
    refuse_unwritable(out)
    existing = [name for name in names if os.path.lexists(out / name)]
    if existing and not overwrite:
        raise UserError(f"{printable(out)} holds {', '.join(existing)} already", where="--out",
                        fix="name another folder, or add --overwrite")  # fmt: skip
