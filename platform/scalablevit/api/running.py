"""Train a recipe from Python, as `pipelines/full.py` does."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Recipe
from scalablevit.config.root import platform_root
from scalablevit.config.space import Search, Value
from scalablevit.pipeline.running import load_recipe_search, prepare, train
from scalablevit.run_files import RUNS
from scalablevit.runs.signals import handle_signals

if TYPE_CHECKING:
    from scalablevit.pipeline.search import SearchResult
    from scalablevit.runs.result import StageResult


@dataclass(frozen=True)
class FinishedStage:
    """The result of a stage."""

    name: str
    metric: str
    """Name of the metric that chose the best checkpoint, such as `val/top1`; larger is better."""
    value: float
    """That metric, on the validation split."""
    step: int
    """Optimizer step of the best checkpoint."""
    metrics: Mapping[str, float]
    """All metrics of the evaluation at that step, by name."""
    run_folder: Path
    """The run's folder on this machine; `load_model` takes it."""
    registered_as: str
    """Name of the registered model in MLflow."""
    version: str
    """Registered version; empty while MLflow has not taken it: `tracking` then says why."""
    tracking: str
    """One line on what MLflow has and what it still lacks."""
    skipped: bool
    """Whether an earlier run of the same recipe had finished the stage."""


@dataclass(frozen=True)
class FinishedSearch:
    """The result of a search: its best trial, whose values the stages were then trained with."""

    stage: str
    """Name of the searched stage."""
    metric: str
    """Name of the metric that trials are compared by, such as `val/top1`."""
    mode: str
    """`max` or `min`: which values of the metric are better."""
    value: float
    """The metric at the best evaluation of the best trial, on the validation split."""
    step: int
    """Optimizer step of that evaluation."""
    values: Mapping[str, Value]
    """The best trial's values by dotted recipe key, such as `optimizer.lr`."""
    trial: int
    """Number of the best trial, from 0."""
    trials: int
    """Number of all trials, also of those that were stopped or failed."""
    run_folder: Path
    """The search's folder on this machine: `trials.csv`, plots, and `best_recipe.yaml`, which runs as it is."""


@dataclass(frozen=True)
class RunResults:
    """The stages of a run in their order: `for stage in results`, or `results["segment"]` by name."""

    stages: tuple[FinishedStage, ...]
    root: Path
    """Folder of runs, models and mlflow.db."""
    search: FinishedSearch | None = None
    """The search that came first; None: there was none."""

    def __iter__(self) -> Iterator[FinishedStage]:
        return iter(self.stages)

    def __len__(self) -> int:
        return len(self.stages)

    def __getitem__(self, name: str) -> FinishedStage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(f"no stage {name!r} was run; there are {', '.join(stage.name for stage in self) or 'none'}")


def run(
    recipe: Recipe,
    *,
    root: str | Path | None = None,
    stages: str | Sequence[str] | None = None,
    dry_run: bool = False,
) -> RunResults:
    """Train, evaluate and register the stages of a recipe; prints the plan and the progress.

    It does the same as `pipelines/full.py`: stages that have finished are skipped, others continue from their last
    checkpoint, and if the recipe names a search space (`tune`), the search comes first. Workers run on the cluster that
    the environment's RAY_ADDRESS names, else on a Ray that is started on this machine; at the end this process
    disconnects, so a notebook may call again. Ctrl-C lets the stages save and end, a second one ends at once; the same
    call continues.

    Args:
        recipe: of `load_recipe`.
        root: folder for runs, models and mlflow.db, against which relative paths of the recipe resolve; None:
            SCALABLEVIT_ROOT, else ~/scalablevit.
        stages: names of the stages to run, without a search; those that they start from are added. None: all.
        dry_run: check everything and print the plan; nothing is started, and the results are empty.

    Returns:
        The stages' results, in the order of running, and that of the search.

    Raises:
        UserError: something in the recipe, the data or the cluster has to be changed, or this process is already
            connected to Ray: this package must be uploaded with the connection, which only this function does.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
        SearchFailed: no trial of the search was evaluated even once.
        KeyboardInterrupt: the stages have saved and recorded their end.
    """
    _refuse_other(recipe)
    wanted = _stage_names(recipe, stages)
    if not dry_run:
        _refuse_connected()
    search = load_recipe_search(recipe, Path.cwd()) if stages is None else None
    root_folder = platform_root(None if root is None else str(root))
    resolved = prepare(recipe, search, root_folder, wanted, dry_run=dry_run)
    if dry_run:
        return RunResults((), root_folder)
    with handle_signals():
        from scalablevit.pipeline import cluster

        try:
            searched, results = train(recipe, search, resolved, root_folder, wanted)
        finally:
            cluster.disconnect()
    finished_search = None if search is None or searched is None else _finished_search(search, searched)
    return RunResults(tuple(_finished_stage(result, root_folder) for result in results), root_folder, finished_search)


def _refuse_other(recipe: object) -> None:
    if not isinstance(recipe, Recipe):
        raise UserError(f"is a {type(recipe).__name__}", where="recipe", fix="give what load_recipe(path) returns")


def _stage_names(recipe: Recipe, stages: str | Sequence[str] | None) -> list[str] | None:
    """Return the names of the stages to run; None: all.

    Raises:
        UserError: one is no stage of the recipe, or none is named.
    """
    if stages is None:
        return None
    names = [stages] if isinstance(stages, str) else list(stages)
    unknown = [name for name in names if name not in recipe.stages]
    if unknown or not names:
        raise UserError(
            f"no stage {unknown[0]!r} in recipe {recipe.name}" if unknown else "no stage is named",
            where="stages",
            fix=f"name some of {', '.join(recipe.stages)}, or leave it out to run all",
        )
    return names


def _refuse_connected() -> None:
    """Refuse a process that is connected to Ray already: its workers do not have this package.

    Raises:
        UserError: it is.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        raise UserError(
            "this process is already connected to Ray, and a connection cannot be given our code afterwards",
            where="ray.init",
            fix="call ray.shutdown() first; for a cluster, set RAY_ADDRESS and let run() connect",
        )


def _finished_stage(result: "StageResult", root: Path) -> FinishedStage:
    return FinishedStage(
        name=result.name,
        metric=result.metric,
        value=result.value,
        step=result.step,
        metrics=dict(result.metrics),
        run_folder=root / RUNS / result.run_name,
        registered_as=result.registered_as,
        version=result.version,
        tracking=result.tracking,
        skipped=result.skipped,
    )


def _finished_search(search: Search, result: "SearchResult") -> FinishedSearch:
    return FinishedSearch(
        stage=search.stage,
        metric=search.space.metric,
        mode=search.space.mode,
        value=result.value,
        step=result.step,
        values=dict(result.best.values),
        trial=result.best.number,
        trials=len(result.trials),
        run_folder=result.folder,
    )
