"""Run a search, from its space to the best values: trials, one MLflow run with a child for each, a table and plots."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from scalablevit.config.commands import command_line
from scalablevit.config.errors import SearchFailed, UserError
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.root import tracking_uri
from scalablevit.config.section import PlainValues
from scalablevit.config.space import Search, search_hash
from scalablevit.config.trial import trial_stage, with_values
from scalablevit.config.unused_keys import drop_unused
from scalablevit.config.user_code import imports_of, package_sums
from scalablevit.pipeline import cluster
from scalablevit.pipeline.chain import run_chain
from scalablevit.pipeline.init_weights import InitWeights
from scalablevit.pipeline.report import publish
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.pipeline.search_summary import format_summary
from scalablevit.pipeline.stage import init_weights_of
from scalablevit.run_files import (
    BASE_RECIPE,
    BEST_RECIPE,
    BEST_TRIAL,
    CHECKPOINTS,
    PLOTS,
    SPACE,
    TRIAL_LIST,
    TRIAL_TABLE,
    TRIALS,
)
from scalablevit.runs.cleanup import clean_up
from scalablevit.runs.console import ignore_output_errors
from scalablevit.runs.result import without_secrets
from scalablevit.runs.run_store import RunStore
from scalablevit.runs.session import RunSession
from scalablevit.runs.signals import raise_if_interrupted
from scalablevit.runs.status import Best, StatusFile
from scalablevit.tracking import tags
from scalablevit.tracking.notifications import Notifier
from scalablevit.tracking.outbox import Outbox, now_ms
from scalablevit.training.data_listing import store_listings
from scalablevit.tuning.population import segment_folders
from scalablevit.tuning.search import SearchCallback, open_trials, run_trials
from scalablevit.tuning.study import as_study
from scalablevit.tuning.trial import TrialContext
from scalablevit.tuning.trials import Trial, rank_trials, table, trial_folder
from scalablevit.viz.search import save_plots


@dataclass(frozen=True)
class SearchResult:
    """The result of a search."""

    name: str
    """Name of the search's run."""
    uid: str
    """Of the search's run in MLflow."""
    folder: Path
    """Folder, on the driver's disk, of table, plots and `best_recipe.yaml`."""
    trials: tuple[Trial, ...]
    best: Trial
    step: int
    """Step of the best trial's best evaluation."""
    value: float
    """The searched metric at that step."""

    def origin(self) -> dict[str, str]:
        """Return the tags for the run and the registered version that are trained with the best values."""
        return {tags.SEARCH: self.name, tags.SEARCH_UID: self.uid, tags.SEARCH_TRIAL: str(self.best.number)}


def search_name(search: Search, resolved: ResolvedStage) -> str:
    """Return the name of the search's run; the same search on the same data has the same name, and is continued.

    Args:
        search: the space with its base recipe.
        resolved: the searched stage.
    """
    return f"{search.recipe.name}-{search.stage}-search-{search_hash(search, resolved.hash, ())}"


def check_begun(search: Search, resolved: ResolvedStage, root: Path) -> None:
    """Refuse to resume a search that has not been started; nothing is created.

    Args:
        search: the space with its base recipe.
        resolved: the searched stage.
        root: the platform's root.

    Raises:
        UserError: it has not been started; the error names the folder that it would have.
    """
    store = RunStore.at(search_name(search, resolved), resolved.stage.cluster.storage, root)
    if store.read(TRIAL_LIST) is None:
        raise UserError(
            "there is nothing to resume: this search was not begun",
            where=store.location,
            fix="start it without --resume; it is the same search only with the same space, recipe, overrides and data",
        )


def search_stage(search: Search, stages: Sequence[ResolvedStage], root: Path, *, retrain: bool) -> SearchResult:
    """Search a stage on the connected cluster, after training the stages that it starts from, and print the result.

    Args:
        search: the space with its base recipe.
        stages: the searched stage, after those that it starts from.
        root: the platform's root.
        retrain: the best values are trained in full afterwards; see `run_search`.

    Raises:
        As `run_search` and `run_chain`.
    """
    *parents, searched = stages
    earlier = {result.name: result for result in run_chain(search.recipe, parents, root)} if parents else {}
    result = run_search(search, searched, init_weights_of(searched, earlier), root, retrain=retrain)
    print("\n" + format_summary(search, result.trials, result.folder), flush=True)
    return result


def run_search(
    search: Search, resolved: ResolvedStage, init_weights: InitWeights | None, root: Path, *, retrain: bool
) -> SearchResult:
    """Run a search on the connected cluster; trials that have ended are kept, others continue.

    Args:
        search: the space with its base recipe.
        resolved: the searched stage of the base recipe.
        init_weights: weights that every trial starts from; None: random ones.
        root: the platform's root.
        retrain: the best values are trained in full afterwards. A search that has ended under the same budget then
            keeps its result, though trials may be left: if that training was interrupted, it must not start again with
            other values.

    Raises:
        UserError: another job owns the search, or the trials do not fit on the cluster.
        SearchFailed: no trial was evaluated even once.
    """
    concurrency = _concurrency(search)
    tracking = resolved.stage.tracking
    store = RunStore.open(search_name(search, resolved), resolved.stage.cluster.storage, root)
    address, wanted = tracking_uri(tracking.uri, root), search.space.budget.trials or 0
    notifier = Notifier(root, tracking.notify, store.name, search.stage, store.location)
    with (
        ignore_output_errors(),
        RunSession(store, address) as session,
        session.at_work(search.stage, wanted, "trials", None, notifier) as status_file,
    ):
        uid, outbox = session.uid, session.outbox
        _begin(search, store, outbox, uid, resolved)
        earlier, same_budget = _stored_result(search, store, uid)
        if retrain and earlier is not None and same_budget:
            return _reuse(search, earlier, status_file, outbox)
        store_listings(store.location, resolved.sources)
        context = TrialContext(
            search=replace(search, recipe=_without_secrets(search.recipe)),
            folder=store.location,
            root=str(root),
            train_samples=resolved.train_samples,
            init_weights=init_weights.location if init_weights else None,
            init_sha256=init_weights.sha256 if init_weights else "",
            keep_head=init_weights is None or init_weights.keep_head(resolved.classes),
            user_code=package_sums(imports_of(search.recipe)),
        )
        trials = open_trials(search, store.location)
        update_status = partial(_update_status, status_file, search, trials)
        callback = SearchCallback(context, trials, outbox, uid, tracking.experiment, update_status)
        ended_before = sum(trial.ended() for trial in trials)
        if earlier is not None:  # no longer the result, should this be interrupted
            _store_result(store, earlier, budget=None)
        try:
            update_status()
            _run(callback, context, concurrency)
            result = _search_result(search, store, uid, callback.trials)
            _save_results(context, result, outbox)
            publish(result.folder, outbox, uid)
            if earlier is None or sum(trial.ended() for trial in callback.trials) > ended_before:
                notifier.record("finished", search.space.metric, result.value)
            _store_result(store, result, _limits(search))
        except KeyboardInterrupt as interrupt:
            clean_up(interrupt, ("recording which trials go on", callback.interrupt))
            raise
        outbox.end(uid, "FINISHED")
    if earlier is not None and earlier.best.values != result.best.values:
        print(f"[search] the best is now trial {result.best.number}; it was trial {earlier.best.number}, and what was "
              "trained with its values stays as it is", flush=True)  # fmt: skip
    return result


def _limits(search: Search) -> PlainValues:
    """Return the part of the budget that is none of the search's identity: with another one it goes on."""
    return search.space.budget.model_dump(mode="json", include={"trials", "wall_minutes"})


def _store_result(store: RunStore, result: SearchResult, budget: PlainValues | None) -> None:
    """Write which trial was the best when the search ended, and under which budget; None: it has begun again."""
    best = {"trial": result.best.number, "values": result.best.values, "step": result.step, "value": result.value}
    store.write_json(BEST_TRIAL, {"budget": budget, **best})


def _stored_result(search: Search, store: RunStore, uid: str) -> tuple[SearchResult | None, bool]:
    """Return the result with which the search ended (None: it has not), and whether its budget is the same now.

    Raises:
        UserError: the file of the result is damaged.
    """
    stored = store.read_json(BEST_TRIAL)
    if stored is None:
        return None, False
    trials = open_trials(search, store.location)
    try:
        best = trials[stored["trial"]]
        best.values, step, value = dict(stored["values"]), int(stored["step"]), float(stored["value"])
        same_budget = stored["budget"] == _limits(search)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"does not say which trial was the best: {error!r}",
            where=f"{store.location}/{BEST_TRIAL}",
            fix="remove the file: the search then ranks its trials again",
        ) from None
    if not best.ended():
        best.status, best.curve = "unfinished", {step: value}  # the outbox alone has the others
    result = SearchResult(store.name, uid, store.local, tuple(trials), best, step, value)
    return result, same_budget


def _reuse(search: Search, earlier: SearchResult, status_file: StatusFile, outbox: Outbox) -> SearchResult:
    """Return the result with which the search ended, after a line and a status that say so."""
    print(_format_reuse(search, earlier), flush=True)
    _update_status(status_file, search, earlier.trials)
    outbox.end(earlier.uid, "FINISHED")
    return earlier


def _format_reuse(search: Search, result: SearchResult) -> str:
    """Return a line that says which result is kept, and how trials that are left can go on."""
    unproposed = max(0, (search.space.budget.trials or 0) - len(result.trials))  # TPE proposes one after the other
    left = sum(not trial.ended() for trial in result.trials) + unproposed
    more = (
        f"; {left} trials have not begun or ended, or failed for a reason outside their values: the search goes on "
        f"with another space.budget.trials or space.budget.wall_minutes, or by `{command_line('tune')} --no-retrain`"
    )
    return (
        f"[search] already finished: trial {result.best.number} is the best of {len(result.trials)}, "
        f"{search.space.metric} {result.value:.4f} ({result.folder}){more if left else ''}"
    )


def _update_status(status_file: StatusFile, search: Search, trials: Sequence[Trial]) -> None:
    """Write the progress of the search into its status; called after every trial, where a signal can interrupt, too."""
    raise_if_interrupted()
    space = search.space
    leading = next(iter(rank_trials(trials, space.mode)), None)
    best = leading.best(space.mode) if leading else None
    status_file.update(
        step=sum(trial.ended() for trial in trials),
        total=space.budget.trials or len(trials),
        best=best and Best(space.metric, value=best[1], step=best[0]),
    )


def _run(callback: SearchCallback, context: TrialContext, concurrency: int) -> None:
    space = context.search.space
    wanted = space.budget.trials or len(callback.trials)
    if sum(trial.ended() for trial in callback.trials) >= wanted:
        print(f"[search] already finished: all {wanted} trials have ended ({context.folder})", flush=True)
        return
    minutes = space.budget.wall_minutes
    run_trials(callback, context, concurrency, None if minutes is None else minutes * 60)


def _concurrency(search: Search) -> int:
    """Return how many trials run at once on the connected cluster.

    Raises:
        UserError: there is room for fewer than the space asks for; with the arithmetic.
    """
    stage = trial_stage(search, {})
    room, requested, resources = cluster.count_copies(stage), search.space.concurrency, stage.cluster
    if room < (requested or 1):
        raise UserError(
            f"the cluster has room for {room} trials at once, and {requested or 1} are asked for, each of "
            f"{resources.workers} worker(s) x ({resources.cpus_per_worker:g} CPU, {resources.gpus_per_worker:g} GPU)",
            where=f"space {search.name}: concurrency, resources",
            fix="ask for less, or add nodes",
        )
    return requested or room


def _begin(search: Search, store: RunStore, outbox: Outbox, uid: str, resolved: ResolvedStage) -> None:
    """Record what is about to run, in the search's folder and for MLflow."""
    space = yaml.safe_dump(search.space.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (store.local / SPACE).write_text(space, encoding="utf-8")
    base = yaml.safe_dump(_plain_recipe(_without_secrets(search.recipe)), sort_keys=False, allow_unicode=True)
    (store.local / BASE_RECIPE).write_text(base, encoding="utf-8")
    facts = {
        tags.DATA_DIGEST: resolved.digest,
        tags.RECIPE_HASH: resolved.hash,
        **tags.user_code(package_sums(resolved.stage.imports)),
        "space": search.name,
        "run_folder": store.location,
    }
    outbox.run(uid, store.name, experiment=resolved.stage.tracking.experiment, tags=facts)
    outbox.params(uid, {f"space.{path}": distribution.model_dump_json(exclude_none=True)
                       for path, distribution in search.space.parameters.items()})  # fmt: skip
    for file in (SPACE, BASE_RECIPE):
        outbox.artifact(uid, store.local / file)


def _search_result(search: Search, store: RunStore, uid: str, trials: list[Trial]) -> SearchResult:
    """Return the result of the trials.

    Raises:
        SearchFailed: no trial was evaluated even once.
    """
    leading = next(iter(rank_trials(trials, search.space.mode)), None)
    best = leading.best(search.space.mode) if leading else None
    if leading is None or best is None:
        raise SearchFailed(
            f"none of {len(trials)} trials came to an evaluation:\n"
            + "\n".join(f"  trial {trial.number}: {trial.status} {trial.reason}" for trial in trials)
            + f"\ntheir folders are in {store.location}/{TRIALS}"
        )
    return SearchResult(store.name, uid, store.local, tuple(trials), leading, *best)


def _save_results(context: TrialContext, result: SearchResult, outbox: Outbox) -> None:
    """Write table, plots and the best recipe into the search's folder, and record them and the metrics for MLflow."""
    space = context.search.space
    per_epoch = {
        trial.number: context.train_samples / trial_stage(context.search, trial.values).training.global_batch_size
        for trial in result.trials
    }
    files = [result.folder / TRIAL_TABLE, result.folder / BEST_RECIPE]
    files[0].write_text(table(result.trials, space.mode, per_epoch), encoding="utf-8")
    files[1].write_text(best_recipe(context.search, result), encoding="utf-8")
    curves, ranking = {trial.number: trial.curve for trial in result.trials}, rank_trials(result.trials, space.mode)
    study, order = as_study(result.trials, space), [trial.number for trial in ranking]
    files += save_plots(study, curves, order, space.metric, result.folder / PLOTS)
    for file in files:
        outbox.artifact(result.uid, file, PLOTS if file.suffix == ".png" else None)
    folder = trial_folder(context.folder, result.best.number)
    outbox.tags(result.uid, {
        "best": f"{space.metric}={result.value:.6g} at step {result.step} of trial {result.best.number}",
        "checkpoint": f"{[folder, *segment_folders(folder)][-1]}/{CHECKPOINTS}",
    })  # fmt: skip
    counts = {f"trials/{status}": float(sum(trial.status == status for trial in result.trials))
              for status in ("finished", "stopped", "failed", "unfinished")}  # fmt: skip
    metrics = {"search/best": result.value, **counts}
    # grows whenever a resumed search trains or ends a trial: the outbox keeps the first point of each step
    step = sum(1 + (trial.ended() and not trial.to_retry) + max(trial.curve, default=0) for trial in result.trials)
    outbox.metrics(result.uid, [{"step": step, "time_ms": now_ms(), "metrics": metrics}])


def best_recipe(search: Search, result: SearchResult) -> str:
    """Return the base recipe with the best trial's values as the text of a file that can be run.

    Its comment says where it comes from.

    Args:
        search: the space with its base recipe.
        result: of the search.
    """
    recipe = with_values(_without_secrets(search.recipe), search.stage, result.best.values)
    values = ", ".join(f"{path}={value}" for path, value in result.best.values.items())
    length = trial_stage(search, result.best.values).training
    trained = f"{length.epochs:g} epochs" if length.epochs else f"{length.steps} steps"
    head = [
        f"# Recipe {recipe.name} with what search {result.name} found for stage {search.stage}: {values}.",
        f"# Trial {result.best.number} of {len(result.trials)}: {search.space.metric} {result.value:.6g} at step "
        f"{result.step}, in a training of {trained}.",
    ]
    if search.space.scheduler.kind == "pbt":
        head.append("# Population-based training changed the values on the way: these are the last ones.")
    head.append(f"# {command_line('full')} --recipe <this file>")
    return "\n".join(head) + "\n" + yaml.safe_dump(_plain_recipe(recipe), sort_keys=False, allow_unicode=True)


def _plain_recipe(recipe: Recipe) -> PlainValues:
    plain = recipe.model_dump(mode="json", exclude={"tune"})
    return {**plain, "stages": {name: drop_unused(stage) for name, stage in plain["stages"].items()}}


def _without_secrets(recipe: Recipe) -> Recipe:
    stages: dict[str, Stage] = {name: without_secrets(stage) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"stages": stages})
