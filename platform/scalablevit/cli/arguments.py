"""Arguments that several commands have."""

import argparse
from collections.abc import Sequence

from scalablevit.config.packages import refuse_other_modules
from scalablevit.config.shipped import recipe_file

MODEL = "models:/NAME@ALIAS, models:/NAME/VERSION, or a run's name, as `runs list` prints it"
ON_A_CLUSTER = "Runs on the Ray cluster that RAY_ADDRESS names; without it, Ray is started on this machine."


def add_verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    what: str,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> argparse.ArgumentParser:
    """Add a verb of a command; `what` is its line in the command's help, and the description in its own."""
    return verbs.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", parents=list(parents))


def add_model(parser: argparse.ArgumentParser, others: str = "") -> None:
    """Add `MODEL`, a registered version or a run."""
    parser.add_argument("model", metavar="MODEL", help=MODEL + others)


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add `--root`."""
    parser.add_argument(
        "--root", metavar="DIR", help="folder of runs, caches and mlflow.db; a relative data.root is resolved against "
        "it (default: $SCALABLEVIT_ROOT, else ~/scalablevit)",
    )  # fmt: skip


def add_imports(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add `--imports`, which may come several times: modules of users' own packages, as under `imports` in a recipe."""
    parser.add_argument("--imports", type=_module, action="append", default=[], metavar="MODULE",
                        help=f"your own package, which is imported, {purpose}")  # fmt: skip


def _module(text: str) -> str:
    try:
        refuse_other_modules(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add `--recipe`: a file, or the name of a shipped recipe."""
    parser.add_argument(
        "--recipe", type=recipe_file, metavar="FILE",
        help="recipe file, or a name that `recipe list` prints (default: demo, on built-in data)",
    )  # fmt: skip
