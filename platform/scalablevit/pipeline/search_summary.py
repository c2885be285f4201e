"""Texts about a search: its plan, and its result."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.recipe import Length
from scalablevit.config.space import Search
from scalablevit.config.trial import trial_stage
from scalablevit.run_files import BEST_RECIPE, PLOTS, TRIAL_TABLE

if TYPE_CHECKING:
    from scalablevit.tuning.trials import Trial


def format_plan(search: Search, train_samples: int) -> str:
    """Return the plan of a search as text.

    Args:
        search: the space with its base recipe.
        train_samples: samples of the training split.
    """
    space, stage = search.space, trial_stage(search, {})
    length = Length.of(stage, train_samples)
    rules = {"none": "no trial is stopped early", "pbt": f"values change every {space.scheduler.perturb_epochs} epochs"}
    stopping = rules.get(space.scheduler.kind, f"none is stopped before epoch {space.scheduler.grace_epochs:g}")
    cluster = stage.cluster
    facts = {
        "stage": f"{search.stage} of recipe {search.recipe.name}",
        "best": f"{space.mode} of {space.metric} over a trial's evaluations",
        "trials": f"{space.budget.trials or 'all combinations'}, searcher {space.searcher}, seed {space.seed}",
        "each": f"{length.total} steps ({length.total / length.steps_per_epoch:.4g} epochs), evaluation every "
        f"{length.evaluate_every}, {cluster.workers} worker(s) x ({cluster.cpus_per_worker:g} CPU, "
        f"{cluster.gpus_per_worker:g} GPU)",
        "scheduler": f"{space.scheduler.kind}: {stopping}",
        "at once": str(space.concurrency or "as many as fit"),
        "wall time": f"at most {space.budget.wall_minutes:g} minutes" if space.budget.wall_minutes else "no limit",
        **{path: distribution.model_dump_json(exclude_none=True) for path, distribution in space.parameters.items()},
    }
    width = max(map(len, facts)) + 2
    return f"search {search.name}\n" + "\n".join(f"  {name:<{width}}{fact}" for name, fact in facts.items())


def format_summary(search: Search, trials: "Sequence[Trial]", folder: Path) -> str:
    """Return the best trials, the number of others, and where all files are, as text.

    Args:
        search: the space with its base recipe.
        trials: all trials.
        folder: the search's folder on this machine.
    """
    from scalablevit.tuning.trials import rank_trials  # imported late: a dry run need not load it

    space = search.space
    lines = [f"{space.metric}  trial"]
    for trial in rank_trials(trials, space.mode)[:5]:
        best = trial.best(space.mode)
        values = ", ".join(f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
                           for path, value in trial.values.items())  # fmt: skip
        lines.append(f"{best[1] if best else 0:.4f}    {trial.number} ({trial.status}): {values}")
    failed = [f"failed: trial {trial.number}: {trial.reason}" for trial in trials if trial.status == "failed"]
    counts = {status: sum(trial.status == status for trial in trials)
              for status in ("finished", "stopped", "failed", "unfinished")}  # fmt: skip
    lines += [", ".join(f"{count} {status}" for status, count in counts.items() if count), *failed]
    lines += [f"table and plots   {folder / TRIAL_TABLE}, {folder / PLOTS}"]
    lines += [f"best recipe       {folder / BEST_RECIPE}"]
    return "\n".join(lines)
