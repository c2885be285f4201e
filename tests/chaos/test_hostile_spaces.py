"""Wrong search spaces: a failing case for every rule of the schema and every mistake named, and mutated ones.

SCALABLEVIT_FUZZED and SCALABLEVIT_SEED as in test_hostile_recipes.py; of spaces there are a quarter as many.
"""

import copy
import json
import os
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.refusals import Place, caller, record, written_in
from harness.schema_rules import (
    GONE,
    Plain,
    Rule,
    Walk,
    mutate,
    mutate_text,
    raised_at,
    raises_of_validators,
    without_rule,
)
from pydantic import ValidationError

from scalablevit.config import space_loading, trial
from scalablevit.config.errors import UserError
from scalablevit.config.space import Search, Space, search_hash
from scalablevit.config.space_loading import load_search
from scalablevit.config.trial import trial_stage

REPOSITORY = Path(__file__).parents[2]
SHIPPED = sorted((REPOSITORY / "tune_spaces").glob("*.yaml"))
FUZZED = int(os.environ.get("SCALABLEVIT_FUZZED", "2000")) // 4
SEED = int(os.environ.get("SCALABLEVIT_SEED", "0"))
LONGEST_S = 2.0

pytestmark = pytest.mark.row("Configuration: search spaces")

RECIPE = """
name: base
data:
  source: image_folder
  root: set
  train: {images: train}
  val: {images: val}
task: {kind: classification}
optimizer: {lr: 0.001, schedule: {kind: multistep, decay_epochs: [3, 4]}}
training: {steps: 50, global_batch_size: 8}  # in epochs, schedules would be scaled with the trial
stages:
  first: {model: {name: resnet18}}
  second: {model: {name: resnet18}, optimizer: {schedule: {kind: cosine, decay_epochs: [], warmup_epochs: 2}}}
"""
SPACE = """
recipe: base.yaml
stage: first
metric: val/top1
mode: max
searcher: random
seed: 3
scheduler: {kind: asha, grace_epochs: 1.0, reduction_factor: 3.0}
budget: {trials: 4, epochs: 5.0, evaluate_every_epochs: 1.0, wall_minutes: 5.0}
concurrency: 1
resources: {workers: 1, cpus_per_worker: 1.0, gpus_per_worker: 0.0, loader_workers: 0}
keep_best: 3
"""
DRAWS: dict[str, Any] = {"uniform": [0.001, 0.01], "loguniform": [0.001, 0.01], "choice": [0.001, 0.01]}


def base(draw: str) -> dict[str, Any]:
    """A right space in which every section stands."""
    return {**yaml.safe_load(SPACE), "parameters": {"optimizer.lr": {draw: list(DRAWS[draw])}}}


RULES: list[Rule] = [
    rule
    for draw in DRAWS
    for rule in Walk(Space, draw, base(draw), elsewhere=tuple(DRAWS)).rules()
    if draw == "uniform" or rule.path[:1] == ("parameters",)
]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Writes a space, and its base recipe beside it."""
    (tmp_path / "base.yaml").write_text(RECIPE)

    def write(tree: Any) -> Path:
        file = tmp_path / "space.yaml"
        file.write_text(yaml.dump(tree, Dumper=Plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
        return file

    return write


def refusal(file: Path) -> str:
    """What a space is refused with."""
    try:
        load_search(file)
    except UserError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("draw", DRAWS)
def test_the_spaces_that_rules_are_tried_on_are_right(draw: str, write: Any):
    assert load_search(write(base(draw))).stage == "first"


def test_every_rule_refuses_with_place_and_value(write: Any):
    wrong = []
    for rule in RULES:
        file = write(rule.broken(base(rule.kind)))
        begin = time.process_time()
        said = refusal(file)
        assert time.process_time() - begin < LONGEST_S, rule
        # a missing key has no line
        place = re.search(rf"{re.escape(str(file))}(:\d+)?: ", said)
        if not place or ".".join(map(str, rule.path)) not in said or rule.shown not in said:
            wrong.append(f"{rule} -> {said}")
    assert not wrong, "\n".join(wrong)


def test_there_is_a_rule_for_every_constraint_of_every_field():
    missing, count = without_rule(Space, RULES)
    assert not missing
    assert count >= 14
    for keyword in ("enum", "null", "type", "required", "additionalProperties", "anyOf", "minItems", "maxItems"):
        assert any(rule.keyword == keyword for rule in RULES), keyword


# --- rules that the schema cannot tell ---

VALIDATORS: list[tuple[dict[str, Any], str]] = [
    ({"parameters": {"optimizer.lr": {}}}, "exactly one of uniform, loguniform and choice"),
    ({"parameters": {"optimizer.lr": {"uniform": [1, 2], "choice": [1]}}}, "exactly one of"),
    ({"parameters": {"optimizer.lr": {"uniform": [1, 1]}}}, "the low end (1.0) must be less than the high end (1.0)"),
    ({"parameters": {"optimizer.lr": {"loguniform": [0, 1]}}}, "the low end (0.0) of loguniform must be above 0"),
    ({"parameters": {"optimizer.lr": {"uniform": [-1e308, 1e308]}}}, "is too wide"),
    ({"parameters": {"optimizer.lr": {"choice": [0.1, 1e-1]}}}, "choice holds 0.1 more than once"),
    ({"scheduler": {"kind": "pbt"}}, "perturb_epochs belongs to, and is needed by, kind: pbt"),
    ({"scheduler": {"kind": "asha", "perturb_epochs": 1}}, "perturb_epochs belongs to"),
]
PBT = {"scheduler": {"kind": "pbt", "perturb_epochs": 1}}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"recipe": GONE}, "names no recipe"),
    ({"recipe": "bose.yaml"}, "cannot read the recipe"),
    ({"stage": GONE}, "names no stage; the recipe has first, second"),
    ({"stage": "frist"}, "no stage 'frist'; did you mean 'first'"),
    ({"resources": {"workers": 9}}, "9 x 1 = 9"),
    ({"parameters": {"cluster.workers": {"choice": [1]}}}, "is not searched: it does not change what is trained"),
    ({"parameters": {"optimizer.lr": {"uniform": [0.1, 20]}}}, "the recipe refuses 20.0"),
    (
        {"parameters": {"optimizer.momentum": {"choice": [0.5]}}},
        "optimizer.momentum has no effect with optimizer.name: adamw",
    ),
    ({"parameters": {"model.name": {"choice": ["resnet81"]}}}, "unknown architecture 'resnet81'"),
    ({"parameters": {"a." * 400 + "b": {"choice": [1]}}}, "nested deeper"),
    ({"budget": {"trials": 4, "epochs": 4}}, "the decay after 4 epochs is beyond the end of a trial (4 epochs)"),
    ({"stage": "second", "budget": {"trials": 4, "epochs": 2}}, "a warm-up of 2 epochs is not over"),
    ({"scheduler": {"kind": "median", "grace_epochs": 5}}, "5 is not less than the 5 epochs of a trial"),
    ({"budget": {"trials": 4, "epochs": 5, "evaluate_every_epochs": 5}}, "asha could not act"),
    ({"metric": "val/top2"}, "task classification reports no 'val/top2'"),
    ({"mode": "min"}, "min would search for the worst model by val/top1"),
    ({"parameters": {}}, "the space is empty"),
    ({"parameters": {p: {"choice": [None]} for p in ("optimizer", "optimizer.lr")}}, "lr is within optimizer"),
    ({"budget": {"epochs": 5}}, "trials are needed by searcher random"),
    ({"searcher": "grid"}, "a grid needs `choice`, not a range"),
    ({"searcher": "grid", "parameters": {"optimizer.lr": {"choice": [0.1]}}}, "4 trials are more than the grid's"),
    (
        {
            "searcher": "grid",
            "budget": {"epochs": 5},
            "parameters": {f"model.options.{name}": {"choice": [*range(11)]} for name in "abcde"},
        },
        "too many combinations (11 x 11 x 11 x 11 x 11 = 161051",
    ),
    (PBT | {"searcher": "tpe"}, "scheduler pbt needs searcher random, not tpe"),
    (PBT | {"budget": {"trials": 4, "evaluate_every_epochs": 0.125}}, "a trial is evaluated 8 times in 1 epochs"),
    (PBT | {"resources": {"workers": 2}}, "scheduler pbt needs trials of one worker, not of 2"),
    (PBT | {"parameters": {"model.name": {"choice": ["resnet18"]}}}, "pbt changes values while a model trains"),
]


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**base("uniform"), **changes}.items() if value is not GONE}


def test_every_validator_refuses_and_none_is_without_a_case(write: Any):
    reached: set[Place] = set()
    for changes, said in VALIDATORS:
        file = write(changed(changes))
        message = refusal(file)
        assert said in message and str(file) in message
        with pytest.raises(ValidationError) as caught:
            Space.model_validate_json(json.dumps(changed(changes)))
        reached |= raised_at(caught.value)
    written = raises_of_validators(Space)
    assert len(written) >= 6
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


def test_every_mistake_is_named_and_none_is_without_a_case(write: Any, monkeypatch: pytest.MonkeyPatch):
    reached = record(monkeypatch)
    add = space_loading._Mistakes.add

    def noted(self: Any, *arguments: str, **named: str) -> None:
        reached.add(caller(__file__))
        add(self, *arguments, **named)

    monkeypatch.setattr(space_loading._Mistakes, "add", noted)
    for changes, said in MISTAKES:
        file = write(changed(changes))
        message = refusal(file)
        assert said in message and str(file) in message, message
    several = refusal(write(changed({"metric": "val/top2", "stage": "first", "parameters": {}})))
    assert "val/top2" in several and "the space is empty" in several
    search = load_search(write(base("uniform")))
    with pytest.raises(UserError, match=r"no valid recipe: optimizer.lr=-1"):
        trial_stage(search, {"optimizer.lr": -1})
    written = written_in(space_loading, trial, calls=("UserError", "UserErrors", "mistakes.add"))
    assert len(written) >= 24
    assert written <= reached, f"no case reaches {sorted(written - reached)}"


def test_mistakes_of_the_base_recipe_name_its_own_file(write: Any, tmp_path: Path):
    file = write(base("uniform"))
    (tmp_path / "base.yaml").write_text(RECIPE.replace("global_batch_size: 8", "global_batch_size: 0"))
    assert f"{tmp_path / 'base.yaml'}:10: " in refusal(file)


# --- mutations ---


def test_mutated_spaces_load_or_are_refused(tmp_path: Path, record_property: Any):
    """One that loads also makes trials, or says which values do not fit together."""
    print(f"{FUZZED} spaces from seed {SEED}")
    shipped = [(path.read_text(), yaml.load(path.read_text(), yaml.CSafeLoader)) for path in SHIPPED]
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "pipelines").symlink_to(REPOSITORY / "pipelines")
    file = tmp_path / "tune_spaces" / "space.yaml"
    refused, slowest = 0, 0.0
    for number in range(FUZZED):
        draw = random.Random(f"{SEED} {number}")
        text, tree = draw.choice(shipped)
        if draw.random() < 0.2:
            text = mutate_text(text, draw)
        else:
            tree = copy.deepcopy(tree)
            for _ in range(draw.randint(1, 3)):
                mutate(tree, draw)
            text = yaml.dump(tree, Dumper=Plain, allow_unicode=True)
        file.write_bytes(text.encode(errors="surrogatepass"))
        begin = time.process_time()
        try:
            search: Search | None = load_search(file)
        except UserError as error:
            search = None
            refused += 1
            recipe = tree.get("recipe") if isinstance(tree, dict) else None
            assert str(file) in str(error) or str(recipe) in str(error), f"seed {SEED}, space {number}: {error}"
            str(error).encode()
        except Exception as error:
            raise AssertionError(f"seed {SEED}, space {number}: {error!r}\n{text}") from error
        slowest = max(slowest, time.process_time() - begin)
        if search is not None:
            makes_trials(search)
    record_property("slowest space", f"{slowest:.2f} s")
    print(f"{refused} refused, {FUZZED - refused} loaded, slowest {slowest:.3f} s")
    assert slowest < LONGEST_S
    assert 0.5 * FUZZED < refused < FUZZED


def makes_trials(search: Search) -> None:
    for end in (0, -1):
        values = {path: draw.corners()[end] for path, draw in search.space.parameters.items()}
        try:
            trial_stage(search, values)
        except UserError as error:
            assert len(values) > 1, error  # each alone was tried on the recipe
    assert len(search_hash(search, "digest")) == 12


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_shipped_space_is_refused(path: Path):
    makes_trials(load_search(path))


# --- as a user meets it ---


@pytest.mark.parametrize("script", ["tune", "full"])
def test_a_wrong_space_ends_the_script_within_two_seconds_with_exit_code_2(script: str, write: Any, tmp_path: Path):
    """Seconds of CPU: those on the clock are the machine's, which may be busy."""
    file = write(changed({"metric": "val/top2"}))
    (tmp_path / "tuned.yaml").write_text(RECIPE + "tune: space.yaml\n")
    chosen = ["--space", str(file)] if script == "tune" else ["--recipe", str(tmp_path / "tuned.yaml")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "pipelines" / f"{script}.py"), *chosen, "--root", str(tmp_path / "root")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and "val/top2" in done.stderr and str(file) in done.stderr, done.stderr
    assert "Traceback" not in done.stderr + done.stdout and not (tmp_path / "root").exists()
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LONGEST_S
