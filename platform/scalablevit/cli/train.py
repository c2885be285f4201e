"""Train a recipe: `full`, and the verbs of single stages."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.cli.arguments import ON_A_CLUSTER, add_recipe, add_root
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.config.commands import short_name
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_and_import
from scalablevit.config.overrides import Scope
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.config.shipped import DEMO, RECIPES
from scalablevit.config.task_info import kind_of_script
from scalablevit.pipeline.running import load_recipe_search, prepare, train

if TYPE_CHECKING:
    from scalablevit.pipeline.resolve import ResolvedStage

EPILOG = f"""\
Overrides are dotted recipe keys: optimizer.lr=1e-4 data.root=/data/photos cluster.workers=8. An override applies to
every stage that this command runs, and to the stages whose weights those start from, if the stage reads the key; if
these are not all stages of the recipe, a line names them. stages.<name>.<key>=value applies to one stage. The page
"Recipe keys" of the documentation has every key (`recipe schema` prints them).

{ON_A_CLUSTER}

Exit codes: 0 done; 1 a failure while running; 2 something in the recipe, the data or the cluster that you can fix
(nothing was lost); 130 interrupted. The same command again continues where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all trainings have."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe")
    add_recipe(parser)
    add_root(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Check, train and print; see `add_arguments`.

    Args:
        options: with the verb as `command`: `full`, or that of a single stage.

    Raises:
        UserError: something in the recipe, the data or the cluster has to be fixed; or --json without --dry-run.
        SearchFailed: no trial of the search was evaluated even once.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
    """
    if options.json and not options.dry_run:
        raise UserError(
            "--json prints the plan of a dry run",
            where="--json",
            fix="add --dry-run; what a training came to is in `result.json` of each run's folder",
        )
    with stdout_to_stderr(options.json):
        recipe, stages, root = _run(options)
    if options.json:
        from scalablevit.cli.training_plan import training_plan

        print_document(training_plan(recipe, stages, root))
    return 0


def _run(options: argparse.Namespace) -> "tuple[str, Sequence[ResolvedStage], Path]":
    """Train, or print the plan of a dry run; return the recipe's name, its stages and the root."""
    script = options.command
    path = options.recipe or RECIPES / DEMO
    if options.recipe is None:
        print(f"no --recipe given: running the demo, {path.name}", flush=True)
    recipe = load_and_import(
        path, options.overrides, Scope(f"{short_name(script)} runs", kind_of_script(script), note=print)
    )
    search = load_recipe_search(recipe, path.parent) if script == "full" else None
    root = platform_root(options.root)
    # imported late: a mistake in the recipe is reported before anything slow is loaded
    from scalablevit.pipeline import resolve

    wanted = resolve.wanted_stages(recipe, script)
    stages = prepare(recipe, search, root, wanted, dry_run=options.dry_run)
    if options.dry_run:
        print("dry run: nothing was started")
        return recipe.name, stages, root
    _, results = train(recipe, search, stages, root, wanted)
    from scalablevit.pipeline.chain import format_results

    print("\n" + format_results(results, root, tracking_uri(stages[0].stage.tracking.uri, root)), flush=True)
    return recipe.name, stages, root
