"""Every bad sample of a recipe's data, named with its reason before training."""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from scalablevit.config.data import Data, SplitName
from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.config.overrides import Scope
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import platform_root
from scalablevit.jobs.cli import DEMO, RECIPES

EPILOG = """\
Both splits of every stage are looked at, each once. A line is printed for each bad sample: the file, a tab, the reason.

Without --quick every image and mask is decoded as training does it; JPEGs that decode although their data is broken are
named too (a JPEG carries no checksum, so small damage can pass; tar shards have one, which is compared). The result is
kept in <root>/cache/checks under the data's digest: the same command on the same data answers from there (up to 2 GiB
the digest covers contents, above that names and sizes; --again looks anew). With --quick only headers are read: kind,
size, and whether masks fit their images; nothing is kept.

Samples that cannot be decoded are left out of training and counted, as long as they are at most data.max_bad_fraction
of the split; masks that do not fit are refused in any number.

Exit codes: 0 nothing bad; 1 bad samples, all named; 2 something in the recipe or in the data's folders to mend."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The script's arguments."""
    parser = argparse.ArgumentParser(
        prog="pipelines/check_data.py", description="Name every bad sample of a recipe's data, without training.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe")
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="recipe (default: the built-in demo)")
    parser.add_argument("--root", metavar="DIR", help="the platform's root (SCALABLEVIT_ROOT, ~/scalablevit)")
    parser.add_argument("--quick", action="store_true", help="headers only")
    parser.add_argument("--again", action="store_true", help="decode also what an earlier check has decoded")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Check and print; see `parse`.

    Raises:
        UserErrors: of all splits, what keeps their samples from being listed; the others have been checked.
    """
    path = options.recipe or RECIPES / DEMO
    recipe = load_recipe(path, options.overrides, Scope("check_data.py checks", note=print))
    root = platform_root(options.root)
    bad, errors = 0, list[UserError]()
    for where, data, split in _splits(recipe):
        try:
            bad += _check(where, data, split, root, options)
        except UserError as error:
            errors += error.errors if isinstance(error, UserErrors) else [error]
    if errors:
        raise UserErrors(list({str(error): error for error in errors}.values()))
    print(_advice(bad, path, options))
    return 1 if bad else 0


def _splits(recipe: Recipe) -> Iterator[tuple[str, Data, SplitName]]:
    """Each split of different data once, with the name of its stage."""
    known: list[Data] = []
    for name, stage in recipe.stages.items():
        if stage.data not in known:
            known.append(stage.data)
            yield f"{name}/train", stage.data, "train"
            yield f"{name}/val", stage.data, "val"


def _check(where: str, data: Data, split: SplitName, root: Path, options: argparse.Namespace) -> int:
    """Name the bad samples of a split; how many there are."""
    from scalablevit.data.check import check_split, image_notes, mask_advice
    from scalablevit.data.shapes import write_shapes
    from scalablevit.data.sources.files import left_out
    from scalablevit.data.sources.opening import open_source

    if data.shapes is not None:
        write_shapes(data.shapes, root / Path(data.root).expanduser())
    source = open_source(data, split, root)
    print(f"{where}: {len(source)} samples, {left_out(source.ignored)}", flush=True)
    processors = os.cpu_count() or 1
    if options.quick:
        report = check_split(source, data, 4 * processors, depth="headers")
    else:
        cache = None if options.again else root / "cache" / "checks"
        report = check_split(source, data, processors, cache, depth="pixels")
    for note in image_notes(report):
        print(f"{where}: warning: {note}")
    for kind, problems in (("", report.unreadable), ("", report.wrong), ("damaged, ", report.damaged)):
        for problem in problems:
            print(f"{problem.path}\t{kind}{problem.reason}")
    if report.unreadable:
        share = len(report.unreadable) / report.samples
        above = share > data.max_bad_fraction
        print(
            f"{where}: {len(report.unreadable)} samples cannot be read ({share:.4g} of them, "
            f"{'above' if above else 'not above'} data.max_bad_fraction {data.max_bad_fraction:g}): "
            f"training {'refuses them' if above else 'leaves them out and counts them'}"
        )
    if report.wrong:
        print(f"{where}: {len(report.wrong)} masks do not fit: training refuses them; {mask_advice(report)}")
    if report.damaged:
        print(
            f"{where}: {len(report.damaged)} JPEGs or shards are damaged: training cannot tell and uses what they "
            "decode to"
        )
    return len(report.unreadable) + len(report.wrong) + len(report.damaged)


def _advice(bad: int, path: Path, options: argparse.Namespace) -> str:
    """What to do next."""
    if bad:
        return (
            f"{bad} bad samples. Correct or replace the files named above, or remove them (with their masks or "
            "annotations), then run this check again."
        )
    if options.quick:
        return "All headers are sound. Damage behind them is found without --quick."
    return f"Nothing bad. Next: python pipelines/full.py --recipe {shlex.quote(str(path))} --dry-run"
