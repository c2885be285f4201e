"""Search spaces: what they refuse and how it is said, what a trial trains, and what names a search."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.config.run_hash import stage_hash
from scalablevit.config.space import (
    Budget,
    Distribution,
    Resources,
    Scheduler,
    Search,
    Space,
    combinations,
    search_hash,
)
from scalablevit.config.space_loading import load_search
from scalablevit.config.task_info import TASKS
from scalablevit.config.trial import trial_epochs, trial_stage, value_at, with_values

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "pipelines" / "recipes"

BASE = """\
name: base
data:
  source: image_folder
  root: pictures
  train: {images: train}
  val: {images: val}
model: {name: scalablevit_tiny}
task: {kind: classification}
optimizer:
  lr: 1e-3
  schedule: {kind: cosine, warmup_epochs: 2}
training: {epochs: 20, global_batch_size: 8, checkpoint_every: {steps: 5}}
cluster: {workers: 2, min_workers: 1, storage: elsewhere}
tune: space.yaml
"""

SPACE = """\
recipe: base.yaml
metric: val/top1
searcher: random
seed: 3
scheduler: {kind: asha, grace_epochs: 1}
budget:
  trials: 4
  epochs: 5
parameters:
  optimizer.lr: {loguniform: [1e-4, 1e-2]}
  model.drop_path_rate: {uniform: [0, 0.3]}
  optimizer.betas: {choice: [[0.9, 0.999], [0.9, 0.95]]}
"""

SEGMENTATION = """\
name: seg
data:
  source: mask_pairs
  root: pictures
  train: {images: t, masks: m}
  val: {images: t, masks: m}
  classes: [sky, sea]
model: {name: resnet18}
task: {kind: segmentation, head: semantic_fpn}
optimizer: {lr: 1e-3}
training: {steps: 50, global_batch_size: 8}
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a space, and its base recipe beside it."""

    def write(space: str = SPACE, recipe: str = BASE) -> Path:
        (tmp_path / "base.yaml").write_text(recipe, encoding="utf-8")
        (tmp_path / "space.yaml").write_text(space, encoding="utf-8")
        return tmp_path / "space.yaml"

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_search(path, overrides)
    return str(caught.value)


def with_parameter(line: str) -> str:
    return f"{SPACE}  {line}\n"


# --- what is read ---


def test_a_space_is_held_against_the_recipe_beside_it(write: Write) -> None:
    search = load_search(write())
    assert (search.name, search.stage, search.recipe.name) == ("space", "pretrain", "base")
    assert search.recipe.tune == "space.yaml"
    assert search.space.parameters["optimizer.lr"].corners() == [1e-4, 1e-2]
    assert search.space.parameters["optimizer.betas"].corners() == [[0.9, 0.999], [0.9, 0.95]]
    assert search.space.keep_best == 3


def test_overrides_go_to_the_space_or_to_the_recipe(write: Write) -> None:
    overrides = [
        "space.budget.trials=7",
        "space.resources.cpus_per_worker=0.5",
        "optimizer.lr=0.5",
        "space.parameters.optimizer.lr={choice: [1e-3]}",
        "space.parameters.optimizer.weight_decay={uniform: [0, 1]}",
    ]
    search = load_search(write(), overrides)
    assert search.space.budget == Budget(trials=7, epochs=5.0)
    assert search.space.resources == Resources(cpus_per_worker=0.5)
    assert search.recipe.stages["pretrain"].optimizer.lr == 0.5
    assert search.space.parameters["optimizer.lr"] == Distribution(choice=[1e-3])
    assert search.space.parameters["optimizer.weight_decay"] == Distribution(uniform=(0.0, 1.0))


def test_a_recipe_given_takes_the_place_of_the_one_named(write: Write) -> None:
    path = write(SPACE.replace("base.yaml", "nowhere.yaml"))
    recipe = load_recipe(path.with_name("base.yaml"), ["optimizer.lr=0.5"])
    assert load_search(path, (), recipe).recipe == recipe
    assert load_search(path, ["training.seed=4"], recipe).recipe.stages["pretrain"].training.seed == 4
    with pytest.raises(UserError, match=r"override 'optimizer\.lr=-1'"):
        load_search(path, ["optimizer.lr=-1"], recipe)


def test_tune_is_kept_and_can_be_overridden(write: Write) -> None:
    path = write().with_name("base.yaml")
    assert load_recipe(path).tune == "space.yaml"
    assert load_recipe(path, ["tune=other.yaml"]).tune == "other.yaml"
    assert load_recipe(path, ["tune=null"]).tune is None
    hashes = {stage_hash(load_recipe(path, [each]).stages["pretrain"], "d") for each in ("tune=null", "tune=a")}
    assert len(hashes) == 1


# --- refusals ---


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("recipe: base.yaml", "recipe: bose.yaml", ["space.yaml:1: recipe", "cannot read the recipe", "base.yaml"]),
        ("recipe: base.yaml", "", ["names no recipe", "--recipe"]),
        ("recipe: base.yaml", "recipe: 3", ["space.yaml:1: recipe", "string, got 3"]),
        ("recipe: base.yaml", "recipe: .", ["space.yaml:1: recipe", "cannot read the recipe"]),
        ("metric: val/top1", "metric: val/tp1", ["space.yaml:2: metric", "'val/tp1'; did you mean 'val/top1'"]),
        ("metric: val/top1", "metric: val/miou", ["task classification reports no 'val/miou'", "val/top5"]),
        (
            "metric: val/top1",
            "metric: val/top4",
            ["reports no 'val/top4'\n  fix: it reports val/top1", "(val/top5 of more than five classes)"],
        ),
        ("metric: val/top1", "metric: val/loss", ["max would search for the worst", "mode: min"]),
        ("metric: val/top1", "", ["metric: is missing"]),
        ("metric: val/top1", "metric: val/top1\nmode: most", ["space.yaml:3: mode", "'max' or 'min'", "'most'"]),
        ("metric: val/top1", "metric: val/top1\nstage: pretrian", ["space.yaml:3: stage", "did you mean 'pretrain'"]),
        ("searcher: random", "searchr: random", ["space.yaml:3", "unknown key 'searchr'", "did you mean 'searcher'"]),
        ("searcher: random", "searcher: optuna", ["space.yaml:3: searcher", "'random', 'grid' or 'tpe'"]),
        ("seed: 3", "seed: 3.5", ["space.yaml:4: seed", "integer, got 3.5"]),
        ("grace_epochs", "grace_epoch", ["space.yaml:5: scheduler.grace_epoch", "did you mean 'grace_epochs'"]),
        ("grace_epochs: 1", "grace_epochs: 5", ["space.yaml:5: scheduler.grace_epochs", "5 is not less than the 5"]),
        ("kind: asha, grace_epochs: 1", "kind: median, grace_epochs: 6", ["6 is not less than the 5 epochs"]),
        ("grace_epochs: 1", "reduction_factor: 1", ["scheduler.reduction_factor", "greater than 1"]),
        ("grace_epochs: 1", "perturb_epochs: 1", ["space.yaml:5: scheduler", "perturb_epochs belongs to"]),
        ("kind: asha, grace_epochs: 1", "kind: pbt", ["perturb_epochs belongs to, and is needed by, kind: pbt"]),
        ("trials: 4", "trials: 0", ["space.yaml:7: budget.trials", "greater than or equal to 1, got 0"]),
        ("trials: 4", "trials: 1000000", ["space.yaml:7: budget.trials", "less than or equal to 100000"]),
        ("trials: 4", "wall_minutes: 3", ["space.yaml:6: budget", "trials are needed by searcher random"]),
        (
            "epochs: 5",
            "epochs: 5\n  evaluate_every_epochs: 5",
            ["space.yaml:9", "every 5 epochs", "asha could not act"],
        ),
        ("epochs: 5", "epochs: 5\nresources: {workers: 9}", ["space.yaml:9: resources", "9 x 1 = 9"]),
        ("epochs: 5", "epochs: 5\nresources: {gpus_per_worker: 1.5}", ["space.yaml:9", "1.5", "must be whole"]),
        ("epochs: 5", "epochs: 5\nresources: {cpus: 1}", ["space.yaml:9: resources.cpus", "unknown key"]),
        ("epochs: 5", "epochs: 5\nconcurrency: 0", ["space.yaml:9: concurrency", "got 0"]),
    ],
)
def test_each_mistake_is_said_with_place_key_value_and_choice(
    write: Write, old: str, new: str, said: list[str]
) -> None:
    assert old in SPACE
    message = refusal(write(SPACE.replace(old, new)))
    for part in said:
        assert part in message, message


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("optimizer.lrr: {uniform: [0, 1]}", ["unknown key 'lrr'; did you mean 'lr'", "fix: write optimizer.lr"]),
        ("optimiser.lr: {uniform: [0, 1]}", ["unknown key 'optimiser'; did you mean 'optimizer'"]),
        ("optimizer.lr.low: {uniform: [0, 1]}", ["optimizer.lr is no section but 0.001"]),
        ("'': {uniform: [0, 1]}", ["unknown key ''"]),
        (f"{'a.' * 400}a: {{choice: [1]}}", ["nested deeper"]),
        ("optimizer.weight_decay: {uniform: [0, 1.5]}", ["the recipe refuses 1.5", "less than or equal to 1, got 1.5"]),
        ("optimizer.eps: {uniform: [0, 1]}", ["the recipe refuses 0.0", "greater than 0"]),
        ("task.label_smoothing: {choice: [0.1, 1, 0.2, 3]}", ["refuses 1: ", "got 1", "refuses 3: "]),
        ("data.image_size: {uniform: [32, 64]}", ["refuses 32.0", "integer", "choice: [...]", "whole numbers"]),
        ("data.image_size: {choice: [64, 5000]}", ["refuses 5000: input should be less than or equal to 4096"]),
        ("training.ema_decay: {choice: [null, 'a']}", ["refuses 'a'", "number"]),
        ("model.name: {choice: [scalablevit_tny]}", ["unknown architecture 'scalablevit_tny'", "scalablevit_tiny"]),
        ("model.init: {choice: ['stage:other']}", ["is not searched: all trials start from the same weights"]),
        ("optimizer.schedule.warmup_epochs: {uniform: [0, 5]}", ["refuses 5.0", "warm-up of 5 epochs is not over"]),
        ("cluster.workers: {choice: [1]}", ["is not searched: it does not change what is trained"]),
        ("tracking.experiment: {choice: [a]}", ["does not change what is trained"]),
        ("training.keep.best: {choice: [2]}", ["does not change what is trained"]),
        ("training.epochs: {uniform: [1, 2]}", ["the length of a trial is budget.epochs"]),
        ("training.evaluate_every.epochs: {uniform: [1, 2]}", ["budget.evaluate_every_epochs"]),
        ("data.train.images: {choice: [a]}", ["metrics on different data cannot be compared"]),
        ("data.root: {choice: [a]}", ["metrics on different data cannot be compared"]),
        ("optimizer: {choice: [null]}", ["optimizer.lr is within optimizer"]),
        ("optimizer.eps: {uniform: [1, 0]}", ["the low end (1.0) must be less than the high end (0.0)"]),
        ("optimizer.eps: {uniform: [1, 1]}", ["the low end (1.0) must be less"]),
        ("optimizer.eps: {uniform: [1]}", ["parameters.optimizer.eps.uniform"]),
        ("optimizer.eps: {uniform: [-1e308, 1e308]}", ["too wide"]),
        ("optimizer.eps: {uniform: [1, .inf]}", ["finite"]),
        ("optimizer.eps: {loguniform: [0, 1]}", ["the low end (0.0) of loguniform must be above 0"]),
        ("optimizer.eps: {choice: []}", ["at least 1 item"]),
        ("optimizer.eps: {choice: [0.1, 0.2, 1e-1]}", ["choice holds 0.1 more than once"]),
        ("optimizer.eps: {choice: [{a: 1}]}", ["parameters.optimizer.eps.choice.0"]),
        ("optimizer.eps: {choise: [1]}", ["did you mean 'choice'"]),
        ("optimizer.eps: {}", ["exactly one of uniform, loguniform and choice"]),
        ("optimizer.eps: {uniform: [0.1, 1], choice: [1]}", ["exactly one of uniform, loguniform and choice"]),
        ("optimizer.eps:", ["parameters.optimizer.eps", "got None"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_wrong_parameter_is_named_with_its_line(write: Write, parameter: str, said: list[str]) -> None:
    message = refusal(write(with_parameter(parameter)))
    assert "space.yaml:13" in message or "optimizer: {choice" in parameter
    for part in said:
        assert part in message, message


def test_true_and_one_are_two_choices(write: Write) -> None:
    path = write(with_parameter("model.options.pretend: {choice: [1, true]}"))
    assert load_search(path).space.parameters["model.options.pretend"].corners() == [1, True]


@pytest.mark.parametrize("parameters", ["{}", "", "3", "[a]"])
def test_an_empty_space_is_refused(write: Write, parameters: str) -> None:
    assert "parameters" in refusal(write(SPACE.partition("parameters:")[0] + f"parameters: {parameters}"))
    assert "parameters" in refusal(write(SPACE.partition("parameters:")[0]))


@pytest.mark.parametrize("text", ["", "- a", "3", "null"])
def test_a_file_that_is_no_space(write: Write, text: str) -> None:
    assert "a space is a mapping" in refusal(write(text))


def test_a_missing_space_names_its_neighbours(write: Write) -> None:
    said = refusal(write().with_name("spacy.yaml"))
    assert "cannot read the space" in said and "space.yaml" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("space.budget.trails=3", "did you mean 'trials'"),
        ("space.budget.trials=-3", "got -3"),
        ("space.budget=3", "got 3"),
        ("space.metric.x=3", "metric is no section but 'val/top1'"),
        ("space.=3", "key.sub=value"),
        ("space.parameters.optimizer.lr={uniform: [0, 20]}", "parameters.optimizer.lr: the recipe refuses 20.0"),
        ("space.parameters.optimizer.x={choice: [0]}", "parameters.optimizer.x: the recipe refuses 0: unknown key"),
        ("optimizer.lr=-3", "optimizer.lr: input should be greater than 0, got -3"),
        ("spase.budget.trials=3", "no section 'spase'"),
    ],
)
def test_each_wrong_override_is_named(write: Write, override: str, said: str) -> None:
    message = refusal(write(), override)
    assert f"override {override!r}" in message
    assert said in message, message


def test_mistakes_of_every_kind_are_reported_at_once(write: Write) -> None:
    """Also where the space is not valid as a whole."""
    broken = SPACE.replace("seed: 3", "sed: 3").replace("val/top1", "val/topl").replace("[0, 0.3]", "[0, 3]")
    with pytest.raises(UserErrors) as caught:
        load_search(write(broken), ["space.budget.trials=0", "space.parameters.optimizer.x={choice: [0]}"])
    text = str(caught.value)
    assert all(part in text for part in ("'sed'", "val/topl", "refuses 3.0", "budget.trials", "unknown key 'x'"))
    assert len(caught.value.errors) == 5


def test_mistakes_of_space_and_recipe_are_reported_at_once(write: Write) -> None:
    said = refusal(write(SPACE.replace("seed: 3", "seed: a"), BASE.replace("lr: 1e-3", "lr: -1")))
    assert "space.yaml:4: seed" in said
    assert "base.yaml:10: optimizer.lr" in said


def test_the_stage_must_be_named_where_there_are_several(write: Write) -> None:
    text = SPACE.replace("base.yaml", str(RECIPES / "demo.yaml")).replace("epochs: 1}", "epochs: 1}\nmode: max")
    text = text.replace("epochs: 5", "epochs: 5\n  evaluate_every_epochs: 1")
    said = refusal(write(text))
    assert "the recipe has pretrain, segment, detect" in said and "stage: <name>" in said
    assert load_search(write(f"stage: pretrain\n{text}")).stage == "pretrain"
    said = refusal(write(f"stage: segment\n{text}"))
    assert "task segmentation reports no 'val/top1'" in said


def test_the_schedule_shrinks_with_the_trial(write: Write) -> None:
    """5 epochs of 20: a quarter of warm-up and decays; retraining has the recipe's own."""
    search = load_search(write(SPACE))
    assert trial_stage(search, {}).optimizer.schedule.warmup_epochs == 0.5
    assert with_values(search.recipe, search.stage, {}).stages[search.stage].optimizer.schedule.warmup_epochs == 2
    recipe = BASE.replace("warmup_epochs: 2", "warmup_steps: 101")
    assert trial_stage(load_search(write(SPACE, recipe)), {}).optimizer.schedule.warmup_steps == 25
    recipe = BASE.replace("{kind: cosine, warmup_epochs: 2}", "{kind: multistep, decay_epochs: [8, 16]}")
    assert trial_stage(load_search(write(SPACE, recipe)), {}).optimizer.schedule.decay_epochs == (2.0, 4.0)
    searched = load_search(write(with_parameter("optimizer.schedule.warmup_epochs: {uniform: [1, 3]}")))
    values = {"optimizer.schedule.warmup_epochs": 1.5}
    assert trial_stage(searched, values).optimizer.schedule.warmup_epochs == 1.5


def test_a_schedule_that_ends_beyond_a_trial_is_refused_where_nothing_tells_how_to_shrink_it(write: Write) -> None:
    """The recipe's length is in steps: it cannot be compared with epochs before the data is known."""
    recipe = BASE.replace("epochs: 20", "steps: 20")
    said = refusal(write(SPACE.replace("epochs: 5", "epochs: 2"), recipe))
    assert "space.yaml:8: budget.epochs" in said and "warm-up of 2 epochs" in said and "(2 epochs)" in said
    recipe = recipe.replace("{kind: cosine, warmup_epochs: 2}", "{kind: multistep, decay_epochs: [2, 5]}")
    said = refusal(write(SPACE, recipe))
    assert "space.yaml:8: budget.epochs: optimizer.schedule.decay_epochs: the decay after 5 epochs" in said
    load_search(write(with_parameter("optimizer.schedule.decay_epochs: {choice: [[2], [3, 4]]}"), recipe))
    said = refusal(write(with_parameter("optimizer.schedule.decay_epochs: {choice: [[2], [3, 6]]}"), recipe))
    assert "refuses [3, 6]: the decay after 6 epochs" in said


def test_the_recipes_own_schedule_is_its_own_business(write: Write) -> None:
    """Nothing was shortened."""
    recipe = BASE.replace("warmup_epochs: 2", "warmup_epochs: 20")
    assert load_search(write(SPACE.replace("  epochs: 5\n", ""), recipe)).space.budget.epochs is None


def test_mask_metrics_need_a_head_with_masks(write: Write) -> None:
    space = """\
stage: detect
metric: val/mask_ap
budget: {trials: 2}
parameters:
  optimizer.lr: {loguniform: [1e-4, 1e-2]}
"""
    recipe = load_recipe(RECIPES / "demo.yaml")
    assert load_search(write(space), (), recipe).stage == "detect"
    with pytest.raises(UserError, match="reports no 'val/mask_ap'; did you mean 'val/box_ap'"):
        load_search(write(space), ["stages.detect.task.head=retinanet"], recipe)


def test_the_good_end_of_every_metric_is_a_mode() -> None:
    assert {metric.better for info in TASKS.values() for metric in info.metrics} == {"max", "min"}
    assert [metric.name for metric in TASKS["classification"].metrics if metric.better == "min"] == ["loss"]


# --- grid and pbt ---

GRID = """\
recipe: base.yaml
metric: val/top1
searcher: grid
parameters:
  optimizer.weight_decay: {choice: [0.05, 0.1]}
  model.drop_path_rate: {choice: [null, 0.1, 0.2]}
"""


def test_a_grid_holds_every_combination_the_last_parameter_fastest(write: Write) -> None:
    space = load_search(write(GRID)).space
    found = combinations(space)
    assert [tuple(each.values()) for each in found] == [
        (0.05, None), (0.05, 0.1), (0.05, 0.2), (0.1, None), (0.1, 0.1), (0.1, 0.2)
    ]  # fmt: skip
    assert all(list(each) == ["optimizer.weight_decay", "model.drop_path_rate"] for each in found)


def test_a_grid_may_be_cut_short_but_not_drawn_out(write: Write) -> None:
    path = write(GRID)
    whole = combinations(load_search(path).space)
    assert combinations(load_search(path, ["space.budget.trials=2"]).space) == whole[:2]
    assert "7 trials are more than the grid's combinations (2 x 3 = 6)" in refusal(path, "space.budget.trials=7")


def test_a_grid_needs_choices(write: Write) -> None:
    said = refusal(write(GRID + "  optimizer.lr: {uniform: [1e-3, 1e-2]}\n"))
    assert "space.yaml:7: parameters.optimizer.lr: a grid needs `choice`" in said


def test_a_grid_may_not_be_endless(write: Write) -> None:
    many = f"{{choice: {[i / 1000 for i in range(400)]}}}"
    text = GRID.partition("parameters:")[0]
    text += f"parameters:\n  optimizer.weight_decay: {many}\n  model.drop_path_rate: {many}\n"
    assert "400 x 400 = 160000" in refusal(write(text))
    assert len(combinations(load_search(write(text), ["space.budget.trials=5"]).space)) == 5


PBT = """\
recipe: base.yaml
metric: val/top1
scheduler: {kind: pbt, perturb_epochs: 2}
budget: {trials: 4}
resources: {workers: 1}
parameters:
  optimizer.lr: {loguniform: [1e-4, 1e-2]}
"""


def test_pbt_keeps_the_checkpoints_that_others_copy(write: Write) -> None:
    keep = trial_stage(load_search(write(PBT)), {}).training.keep
    assert (keep.last, keep.best) == (4, 1)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("metric", "searcher: tpe\nmetric", "pbt needs searcher random, not tpe"),
        ("workers: 1", "workers: 2", "space.yaml:5: resources.workers: scheduler pbt needs trials of one worker"),
        ("resources: {workers: 1}\n", "", "space.yaml:3: scheduler.kind: scheduler pbt needs trials of one worker"),
        (
            "perturb_epochs: 2",
            "perturb_epochs: 5",
            "space.yaml:3: scheduler.perturb_epochs: a trial is evaluated 5",
        ),
        ("perturb_epochs: 2", "perturb_epochs: 20", "scheduler.perturb_epochs: 20 is not less than the 20 epochs"),
        ("optimizer.lr: {loguniform: [1e-4, 1e-2]}", "optimizer.name: {choice: [sgd]}", "cannot be changed then"),
        ("optimizer.lr: {loguniform: [1e-4, 1e-2]}", "model.name: {choice: [resnet18]}", "cannot be changed then"),
    ],
)
def test_what_pbt_needs(write: Write, old: str, new: str, said: str) -> None:
    assert old in PBT
    assert said in refusal(write(PBT.replace(old, new)))


def test_pbt_counts_the_evaluations_between_two_changes(write: Write) -> None:
    space = write(PBT.replace("perturb_epochs: 2", "perturb_epochs: 0.28"))
    load_search(space, ["space.budget.evaluate_every_epochs=0.07"])  # 4, but 0.28 / 0.07 is a little more
    said = refusal(space, "space.budget.evaluate_every_epochs=0.05")
    assert "evaluated 5.6 times in 0.28 epochs, every 0.05 epochs, and its 4 latest checkpoints are kept" in said
    assert "budget.evaluate_every_epochs to 0.07 or more, or lower scheduler.perturb_epochs to 0.2 or less" in said
    load_search(write(PBT, BASE.replace("training: {", "training: {evaluate_every: {steps: 1}, ")))


# --- what a trial trains ---


def test_a_trial_is_the_stage_with_values_budget_and_resources(write: Write) -> None:
    search = load_search(write(), ["space.budget.evaluate_every_epochs=1.5", "space.resources.gpus_per_worker=0.25"])
    base = search.recipe.stages["pretrain"]
    trial = trial_stage(search, {"optimizer.lr": 0.005, "optimizer.betas": [0.9, 0.95], "model.drop_path_rate": 0.1})
    shrunk = base.optimizer.schedule.model_copy(update={"warmup_epochs": 0.5})
    assert trial.optimizer == base.optimizer.model_copy(update={"lr": 0.005, "betas": (0.9, 0.95), "schedule": shrunk})
    assert trial.model == base.model.model_copy(update={"drop_path_rate": 0.1})
    assert (trial.training.epochs, trial.training.evaluate_every.epochs) == (5.0, 1.5)
    assert trial.training.checkpoint_every is None
    assert (trial.training.keep.last, trial.training.keep.best) == (1, 1)
    assert (trial.cluster.workers, trial.cluster.gpus_per_worker, trial.cluster.min_workers) == (1, 0.25, None)
    assert trial.cluster.storage == "elsewhere"
    assert (trial.data, trial.task, trial.tracking) == (base.data, base.task, base.tracking)


def test_without_budget_and_resources_a_trial_takes_the_recipes(write: Write) -> None:
    search = load_search(write(SPACE.replace("  epochs: 5\n", "")))
    base, trial = search.recipe.stages["pretrain"], trial_stage(search, {})
    assert trial.cluster == base.cluster
    assert (trial.training.epochs, trial.training.evaluate_every) == (20.0, base.training.evaluate_every)
    assert trial_epochs(search.space, base) == 20


def test_a_budget_in_epochs_replaces_a_length_in_steps(write: Write) -> None:
    space = SPACE.replace("val/top1", "val/miou")
    search = load_search(write(space, SEGMENTATION))
    trial = trial_stage(search, {})
    assert (trial.training.epochs, trial.training.steps) == (5.0, None)
    search = load_search(
        write(space.replace("  epochs: 5\n", "").replace("grace_epochs: 1", "grace_epochs: 99"), SEGMENTATION)
    )
    assert trial_epochs(search.space, search.recipe.stages["segment"]) is None
    assert trial_stage(search, {}).training.steps == 50


@pytest.mark.parametrize(
    ("written", "expected"),
    [("", {48: 55, 224: 256, 300: 343}), (", eval_resize: 256", {48: 55, 224: 256, 300: 343}),
     (", image_size: 64, eval_resize: 64", {48: 48, 300: 300}), (", eval_resize: 448", {48: 96, 4096: 4096})],
)  # fmt: skip
def test_the_size_before_the_crop_follows_a_searched_image_size(
    write: Write, written: str, expected: dict[int, int]
) -> None:
    """By default 8/7 of it; another one keeps its ratio."""
    recipe = BASE.replace("val: {images: val}", "val: {images: val}" + written.replace(", ", "\n  "))
    search = load_search(write(with_parameter(f"data.image_size: {{choice: {list(expected)}}}"), recipe))
    for size, resized in expected.items():
        values = {"data.image_size": size}
        for stage in (trial_stage(search, values), with_values(search.recipe, "pretrain", values).stages["pretrain"]):
            assert (stage.data.image_size, stage.data.eval_resize) == (size, resized)  # type: ignore[union-attr]


def test_values_that_do_not_fit_together_are_named(write: Write) -> None:
    space = (
        with_parameter("data.image_size: {choice: [64, 256]}").rstrip() + "\n  data.eval_resize: {choice: [224, 512]}\n"
    )
    search = load_search(write(space))
    assert trial_stage(search, {"data.image_size": 256, "data.eval_resize": 512}).optimizer.lr == 1e-3
    with pytest.raises(UserError) as caught:
        trial_stage(search, {"data.image_size": 256, "data.eval_resize": 224})
    assert "data.image_size=256, data.eval_resize=224" in str(caught.value)
    assert "eval_resize (224) must be at least image_size (256)" in str(caught.value)
    with pytest.raises(UserError, match=r"data\.image_size=256, data\.eval_resize=224"):
        with_values(search.recipe, "pretrain", {"data.image_size": 256, "data.eval_resize": 224})


def test_the_recipe_with_the_values_is_otherwise_the_base(write: Write) -> None:
    recipe = load_recipe(RECIPES / "demo.yaml", ["tune=some.yaml"])
    found = with_values(recipe, "segment", {"optimizer.lr": 0.5, "data.scale_range": [0.5, 2]})
    assert found.tune is None
    assert found.stages["segment"].optimizer.lr == 0.5
    assert value_at(found.stages["segment"], "data.scale_range") == [0.5, 2.0]
    back = with_values(found, "segment", {"optimizer.lr": 1e-3, "data.scale_range": [1.0, 1.0]})
    assert back == recipe.model_copy(update={"tune": None})
    assert recipe.tune == "some.yaml"


def test_a_value_in_a_section_that_is_off(write: Write) -> None:
    search = load_search(write(with_parameter("data.rand_augment.magnitude: {uniform: [1, 10]}")))
    trial = trial_stage(search, {"data.rand_augment.magnitude": 3.5})
    assert value_at(trial, "data.rand_augment") == {"magnitude": 3.5, "magnitude_std": 0.5, "operations": 2}


@pytest.mark.parametrize(
    "path", ["optimizer.lrr", "optimizer.lr.x", "", "data.rand_augment.magnitude", "model.options.a"]
)
def test_no_value_where_there_is_no_path(write: Write, path: str) -> None:
    with pytest.raises(KeyError):
        value_at(load_search(write()).recipe.stages["pretrain"], path)


# --- what names a search ---


def hash_of(path: Path, *overrides: str) -> str:
    return search_hash(load_search(path, overrides), "d")


@pytest.mark.parametrize(
    "overrides",
    [
        ["space.budget.trials=9"],
        ["space.budget.wall_minutes=9"],
        ["space.concurrency=2"],
        ["space.keep_best=1"],
        ["space.stage=pretrain"],
        ["space.resources={workers: 2, cpus_per_worker: 3, loader_workers: 2, gpus_per_worker: 1}"],
        ["data.root=elsewhere"],
        ["tracking.experiment=other"],
        ["cluster.cpus_per_worker=3"],
    ],
    ids=lambda overrides: overrides[0].partition("=")[0],
)
def test_how_much_and_where_does_not_change_a_search(write: Write, overrides: list[str]) -> None:
    assert hash_of(write(), *overrides) == hash_of(write())


@pytest.mark.parametrize(
    "override",
    [
        "space.metric=val/top5",
        "space.searcher=tpe",
        "space.seed=4",
        "space.scheduler.grace_epochs=2",
        "space.scheduler={kind: none}",
        "space.budget.epochs=6",
        "space.budget.evaluate_every_epochs=2",
        "space.resources.workers=4",
        "space.parameters.optimizer.lr={loguniform: [1e-4, 2e-2]}",
        "space.parameters.optimizer.lr={uniform: [1e-4, 1e-2]}",
        "space.parameters.optimizer.eps={uniform: [1e-4, 1e-2]}",
        "space.parameters.optimizer.betas={choice: [[0.9, 0.95], [0.9, 0.999]]}",
        "training.seed=1",
        "optimizer.weight_decay=0.1",
    ],
)
def test_what_decides_results_changes_a_search(write: Write, override: str) -> None:
    assert hash_of(write(), override) != hash_of(write())


def test_order_of_parameters_data_and_parents_change_a_search(write: Write) -> None:
    head, _, parameters = SPACE.partition("parameters:\n")
    turned = head + "parameters:\n" + "".join(reversed(parameters.splitlines(keepends=True)))
    search, other = load_search(write()), load_search(write(turned))
    hashes = [
        search_hash(search, "d"),
        search_hash(search, "e"),
        search_hash(search, "d", ["p"]),
        search_hash(other, "d"),
    ]
    assert len(set(hashes)) == 4
    assert all(len(each) == 12 for each in hashes)


def test_a_space_survives_its_own_json(write: Write) -> None:
    search = load_search(write())
    assert Space.model_validate_json(search.space.model_dump_json()) == search.space


# --- anything at all ---

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"), max_size=8)
plain = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abkmnu.", max_size=4), inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(-2, 30) | st.floats(width=16) | st.sampled_from([1e-3, 0.1, 10**400])
fractions = st.tuples(st.floats(0, 0.5), st.floats(0.5, 1)).map(list)
draws = st.one_of(
    fractions.map(lambda ends: {"uniform": ends}),
    fractions.map(lambda ends: {"loguniform": ends}),
    st.lists(st.floats(0, 1), min_size=1, max_size=3).map(lambda values: {"choice": values}),
    st.lists(numbers | plain, max_size=3).map(lambda values: {"choice": values}),
    st.tuples(numbers, numbers).map(lambda ends: {"uniform": list(ends)}),
    plain,
)
paths = [
    "optimizer.lr", "optimizer.betas", "optimizer", "optimizer.schedule.warmup_epochs", "data.image_size", "data.mixup",
    "data.rand_augment.magnitude", "data.mean", "model.options.a", "model.name", "model.init",
    "training.early_stopping", "training.seed", "task.kind", "cluster.workers", ".", "name",
]  # fmt: skip
VALID: dict[str, Any] = {
    "recipe": str(RECIPES / "cifar10.yaml"),
    "metric": "val/top1",
    "budget": {"trials": 3, "epochs": 12, "evaluate_every_epochs": 3},
    "parameters": {"optimizer.lr": {"choice": [0.1, 0.2]}},
}
parts: dict[str, st.SearchStrategy[Any]] = {
    "recipe": st.just(str(RECIPES / "demo.yaml")) | plain,
    "metric": st.sampled_from(["val/loss", "val/miou"]) | plain,
    "mode": st.just("min") | plain,
    "stage": st.sampled_from(["pretrain", "detect"]) | plain,
    "searcher": st.sampled_from(["grid", "tpe"]) | plain,
    "budget": st.fixed_dictionaries({}, optional={"trials": numbers, "epochs": numbers, "x": plain}) | plain,
    "scheduler": st.sampled_from([{"kind": "asha"}, {"kind": "pbt", "perturb_epochs": 1}]) | plain,
    "resources": st.fixed_dictionaries({}, optional={"workers": numbers, "gpus_per_worker": numbers}) | plain,
    "parameters": st.dictionaries(st.sampled_from(paths) | st.text("ab.\0é", max_size=4), draws, max_size=2) | plain,
    "seed": plain,
}
spaces = st.sets(st.sampled_from(sorted(parts)), max_size=2).flatmap(
    lambda names: st.fixed_dictionaries({name: parts[name] for name in sorted(names)})
)


@settings(max_examples=300)
@given(spaces)
def test_any_mapping_is_a_search_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump({**VALID, **raw}), encoding="utf-8")
    try:
        search = load_search(path)
    except UserError as error:
        assert str(path) in str(error) or "recipe" in str(error)
        return
    for end in (0, -1):
        values = {name: draw.corners()[end] for name, draw in search.space.parameters.items()}
        try:
            trial = trial_stage(search, values)
        except UserError:
            continue  # each value is valid, together they need not be
        assert all(value_at(trial, name) == value for name, value in values.items())


FRACTIONS = ["optimizer.weight_decay", "optimizer.schedule.warmup_epochs", "data.flip", "data.rand_augment.magnitude"]


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(FRACTIONS), fractions.map(lambda ends: {"uniform": ends}), min_size=1),
    st.floats(0, 1),
)
def test_what_is_drawn_is_what_is_trained(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Any], share: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    parameters = {name: draw for name, draw in drawn.items() if draw["uniform"] != [0.5, 0.5]} or VALID["parameters"]
    path.write_text(yaml.safe_dump({**VALID, "parameters": parameters}), encoding="utf-8")
    search = load_search(path)
    assert list(search.space.parameters) == sorted(parameters)  # as dumped
    ends = {name: (draw.corners()[0], draw.corners()[-1]) for name, draw in search.space.parameters.items()}
    values: dict[str, Any] = {name: low + share * (high - low) for name, (low, high) in ends.items()}
    trial = trial_stage(search, values)
    whole = with_values(search.recipe, search.stage, values).stages[search.stage]
    for name, value in values.items():
        assert value_at(trial, name) == value_at(whole, name) == value


@settings(max_examples=40)
@given(st.text(st.characters(codec="utf-8"), max_size=30), st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_override_loads_or_gives_a_user_error(key: str, value: str) -> None:
    for override in (f"space.{key}={value}", f"space.parameters.{key}={value}", f"space.parameters={value}"):
        try:
            load_search(REPOSITORY / "tune_spaces" / "cifar10.yaml", [override])
        except UserError as error:
            assert "override" in str(error)


def test_a_wrong_space_is_answered_without_torch(write: Write) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from scalablevit.config.errors import UserError\n"
        "from scalablevit.config.space_loading import load_search\n"
        "try: load_search(Path(sys.argv[1]), ['space.metric=val/topp'])\n"
        "except UserError as error: print(error)\n"
        "heavy = {'torch', 'numpy', 'timm', 'ray', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(write())],
        env={"PYTHONPATH": str(REPOSITORY / "platform")}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "override 'space.metric=val/topp': metric" in done.stdout


def test_every_section_is_frozen_and_every_key_explained() -> None:
    for section in (Space, Distribution, Budget, Scheduler, Resources):
        assert section.model_config["frozen"] and section.model_config["extra"] == "forbid"
    for section in (Distribution, Budget, Scheduler, Resources):
        assert all(field.description for field in section.model_fields.values()), section
    unexplained = {name for name, field in Space.model_fields.items() if not field.description}
    assert unexplained == {"scheduler", "budget"}  # sections of their own
    assert Search.__dataclass_params__.frozen  # type: ignore[attr-defined]
