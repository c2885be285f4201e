"""From a checked recipe to trained models: what the training scripts and the Python API share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.recipe import Recipe
from scalablevit.config.shipped import space_file
from scalablevit.config.space import Search
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_gpus, with_values
from scalablevit.config.user_code import import_user_code, imports_of

if TYPE_CHECKING:
    from scalablevit.pipeline.resolve import ResolvedStage
    from scalablevit.pipeline.search import SearchResult
    from scalablevit.runs.result import StageResult


def load_recipe_search(recipe: Recipe, folder: Path) -> Search | None:
    """Return the search that a run of the whole recipe begins with; None: the recipe names none.

    Args:
        recipe: the checked recipe.
        folder: that `tune` is relative to.

    Raises:
        UserError: as `load_search` and `import_user_code`.
    """
    if recipe.tune is None:
        return None
    import_user_code(imports_of(recipe))  # the search's metric may be one of theirs
    return load_search(space_file(str(recipe.tune), folder), (), recipe)


def prepare(
    recipe: Recipe, search: Search | None, root: Path, wanted: Sequence[str] | None, *, dry_run: bool = False
) -> "list[ResolvedStage]":
    """Check the data and the models of the stages, print the plan, and return the resolved stages.

    Args:
        recipe: the checked recipe.
        search: the search before the training; None: there is none.
        root: the platform's root.
        wanted: names of stages; those that they start from are added. None: all.
        dry_run: look at the data for `DRY_RUN_S` seconds at most, and write the resolved recipe below the root's cache.

    Raises:
        UserError: one mistake in data, weights, model or search.
        UserErrors: several mistakes, over all stages.
    """
    from scalablevit.pipeline import resolve
    from scalablevit.pipeline.plan_summary import print_plan
    from scalablevit.pipeline.resolved_recipe import PLANS, write_resolved

    stages = resolve.resolve(recipe, root, wanted, resolve.DRY_RUN_S if dry_run else None)
    if search is not None:
        resolve.check_metric(search, next(stage for stage in stages if stage.name == search.stage))
    print_plan(recipe.name, stages, root)
    if search is not None:
        from scalablevit.pipeline.search_summary import format_plan
        from scalablevit.pipeline.searched_models import check_searched_models, trial_warnings

        for warning in trial_warnings(search, stages):
            print(f"warning: {warning}", flush=True)
        check_searched_models(search, stages, root)
        samples = next(stage.train_samples for stage in stages if stage.name == search.stage)
        print("\n" + format_plan(search, samples), flush=True)
    print(flush=True)
    if dry_run:
        write_resolved(recipe, stages, root / PLANS / f"{recipe.name}.yaml")
    return stages


def train(
    recipe: Recipe,
    search: Search | None,
    stages: "Sequence[ResolvedStage]",
    root: Path,
    wanted: Sequence[str] | None,
) -> "tuple[SearchResult | None, list[StageResult]]":
    """Connect to the cluster, run the search, if there is one, and the stages, and return their results.

    Ray stays connected.

    Args:
        recipe: the checked recipe.
        search: the search before the training; None: there is none.
        stages: what `prepare` returned for the same arguments.
        root: the platform's root.
        wanted: names of stages; None: all.

    Raises:
        UserError: the cluster does not answer or has too little room, or as `run_chain`.
        SearchFailed: no trial was evaluated even once.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
        KeyboardInterrupt: all stages have recorded their end.
    """
    from scalablevit.pipeline import chain, cluster, resolve  # these load Ray
    from scalablevit.tracking.notifications import sending_notifications

    cluster.connect(stages, root, None if search is None else trial_gpus(search), imports=imports_of(recipe))
    with sending_notifications(root, recipe.stages.values()):
        result: SearchResult | None = None
        origins: dict[str, dict[str, str]] = {}
        if search is not None:
            from scalablevit.pipeline.older_runs import older_searches
            from scalablevit.pipeline.search import search_name, search_stage

            searched = resolve.resolve(recipe, root, [search.stage])
            for note in older_searches(search, search_name(search, searched[-1]), root):
                print(f"note: {note}", flush=True)
            result = search_stage(search, searched, root, retrain=True)
            recipe, origins = with_values(recipe, search.stage, result.best.values), {search.stage: result.origin()}
            stages = resolve.resolve(recipe, root, wanted)
        return result, chain.run_chain(recipe, stages, root, origins)
