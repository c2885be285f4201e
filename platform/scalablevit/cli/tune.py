"""Search hyper-parameters, and train the best configuration at full length."""

import argparse

from scalablevit.cli.arguments import ON_A_CLUSTER, add_root
from scalablevit.config.root import platform_root, tracking_uri
from scalablevit.config.shipped import DEMO, SPACES, recipe_file, space_file
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_gpus, with_values
from scalablevit.config.user_code import imports_of

EPILOG = f"""\
Overrides are dotted recipe keys (data.root=/data/photos), which apply to the searched stage and to those that it starts
from, and keys of the space with `space.` before them: space.budget.trials=40 space.concurrency=8. The page "Search
space keys" of the documentation has every key of a space (`recipe schema --space` prints them).

The same command again continues the search: finished trials are read from their folders, interrupted ones resume from
their checkpoints. A search that has ended keeps its result for the training after it; trials that are left go on under
another space.budget.trials or space.budget.wall_minutes, or with --no-retrain.

{ON_A_CLUSTER}

Exit codes: 0 done; 1 all trials failed, or the training of the best one did; 2 something that you can fix (nothing was
lost); 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the recipe or the space")
    parser.add_argument(
        "--space", type=space_file, metavar="FILE",
        help="search space file, or a name that `recipe list` prints (default: demo, on built-in data)",
    )  # fmt: skip
    parser.add_argument("--recipe", type=recipe_file, metavar="FILE",
                        help="base recipe of the search (default: the space's own)")  # fmt: skip
    add_root(parser)
    parser.add_argument("--resume", action="store_true", help="fail unless this search was started before")
    parser.add_argument(
        "--retrain",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the best trial's values at full length and register the model (default: yes)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")


def run(options: argparse.Namespace) -> int:
    """Search, train the best configuration at full length, and print; see `add_arguments`.

    Raises:
        UserError: something in the space, the recipe, the data or the cluster has to be fixed.
        SearchFailed: no trial was evaluated even once.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
    """
    path = options.space or SPACES / DEMO
    if options.space is None:
        print(f"no --space given: running the demo, {path.name}", flush=True)
    search = load_search(path, options.overrides, options.recipe, print, imports=True)
    root = platform_root(options.root)
    # imported late: a mistake in the space is reported before anything slow is loaded
    from scalablevit.pipeline import chain, cluster, resolve
    from scalablevit.pipeline.older_runs import older_searches
    from scalablevit.pipeline.plan_summary import print_plan
    from scalablevit.pipeline.search import check_begun, search_name, search_stage
    from scalablevit.pipeline.search_summary import format_plan
    from scalablevit.pipeline.searched_models import check_searched_models, trial_warnings
    from scalablevit.tracking.notifications import sending_notifications

    stages = resolve.resolve(search.recipe, root, [search.stage], resolve.DRY_RUN_S if options.dry_run else None)
    resolve.check_metric(search, stages[-1])
    for note in older_searches(search, search_name(search, stages[-1]), root):
        print(f"note: {note}", flush=True)
    if options.resume and stages[-1].hash != resolve.UNKNOWN:
        check_begun(search, stages[-1], root)
    print_plan(search.recipe.name, stages, root)
    for warning in trial_warnings(search, stages):
        print(f"warning: {warning}", flush=True)
    check_searched_models(search, stages, root)
    print("\n" + format_plan(search, stages[-1].train_samples), flush=True)
    if options.dry_run:
        print("\ndry run: nothing was started")
        return 0
    print(flush=True)
    trained = stages if options.retrain else stages[:-1]
    cluster.connect(trained, root, trial_gpus(search), imports=imports_of(search.recipe))
    with sending_notifications(root, search.recipe.stages.values()):
        result = search_stage(search, stages, root, retrain=options.retrain)
        if options.retrain:
            print(f"\ntraining trial {result.best.number}'s values in full\n", flush=True)
            best = with_values(search.recipe, search.stage, result.best.values)
            retrained = resolve.resolve(best, root, [search.stage])
            results = chain.run_chain(best, retrained, root, {search.stage: result.origin()})
            address = tracking_uri(stages[-1].stage.tracking.uri, root)
            print("\n" + chain.format_results(results, root, address), flush=True)
    return 0
