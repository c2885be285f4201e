"""From version 1 to 2: stored values, refusals of old words in files and overrides, and files rewritten in place."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scalablevit.config import strict_yaml
from scalablevit.config.errors import UserError
from scalablevit.config.hints import schema_keys
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Recipe
from scalablevit.config.rewriting import is_space, upgrade_text
from scalablevit.config.run_hash import hashed_part, stage_hash
from scalablevit.config.space import Space, search_hash
from scalablevit.config.space_loading import load_search
from scalablevit.config.stored import (
    parse_stored,
    stored_config,
    stored_recipe,
    stored_sections,
    stored_stage,
    to_store,
)
from scalablevit.config.upgrade import KEYS, VALUES, VERSION, convert, new_override, new_path, upgrade

REPOSITORY = Path(__file__).parents[2]
FILES = [*(REPOSITORY / "pipelines" / "recipes").glob("*.yaml"), *(REPOSITORY / "tune_spaces").glob("*.yaml"),
         REPOSITORY / "tests" / "end_to_end" / "tiny.yaml"]  # fmt: skip

OLD = """\
name: old  # whose
data:
  source: image_folder
  root: pictures
  train: {images: train}
  val: {images: val}
  repeats: 2  # times
  mix_probability: 0.5
  mix_switch_probability: 0.25
  mixup: 0.2
  cutmix: 1.0
optimizer: {lr: 1e-3}
training:
  epochs: 2
  # of all workers
  global_batch: 64
  "accumulation": 2
  stop_after: {evaluations_without_gain: 3}
  not_finite:
    action: roll_back  # back
  on_failed_checkpoint: 'go_on'
promotion: {sure: true, least: 0.5}
model: {name: scalablevit_tiny}
task: {kind: classification}
"""
NEW = """\
name: old  # whose
version: 2
data:
  source: image_folder
  root: pictures
  train: {images: train}
  val: {images: val}
  repeated_augmentation: 2  # times
  mix_prob: 0.5
  mixup_switch_prob: 0.25
  mixup: 0.2
  cutmix: 1.0
optimizer: {lr: 1e-3}
training:
  epochs: 2
  # of all workers
  global_batch_size: 64
  "accumulation_steps": 2
  early_stopping: {patience: 3}
  nonfinite:
    action: rollback  # back
  on_checkpoint_failure: 'continue'
promotion: {require_significance: true, min_value: 0.5}
model: {name: scalablevit_tiny}
task: {kind: classification}
"""
SPACE = """\
recipe: r.yaml
metric: val/top1
budget: {trials: 2}
parameters:
  optimizer.lr: {loguniform: [1e-4, 1e-2]}
  training.accumulation: {choice: [1, 2]}
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "r.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


# --- the table ---


def test_every_new_name_is_in_the_schema_and_no_old_one() -> None:
    known = {path for paths in schema_keys().values() for path in paths}
    for old, new in KEYS.items():
        assert f"{old.rpartition('.')[0]}.{new}" in known
        assert old not in known
    assert set(VALUES) <= known


def test_versions_agree() -> None:
    assert Recipe.model_fields["version"].default == Space.model_fields["version"].default == VERSION == 2


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_shipped_files_state_the_version(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["version"] == VERSION
    assert upgrade_text(path.read_text(), str(path)) == (path.read_text(), [])


# --- stored values ---


def stage_of(text: str) -> dict[str, Any]:
    raw = strict_yaml.load(text, "")[0]
    return {key: value for key, value in raw.items() if key not in ("name", "version")}


def test_a_stage_of_version_1_is_that_of_version_2() -> None:
    assert upgrade(stage_of(OLD)) == {"version": 2, **stage_of(NEW)}
    assert stored_stage(stage_of(OLD)) == stored_stage(stage_of(NEW))
    assert list(upgrade(stage_of(OLD))["training"]) == list(stage_of(NEW)["training"])


def test_recipes_with_stages_and_spaces_are_converted() -> None:
    assert upgrade({"name": "r", "stages": {"a": stage_of(OLD)}}) == {
        "name": "r", "version": 2, "stages": {"a": stage_of(NEW)}
    }  # fmt: skip
    space = {"metric": "val/top1", "parameters": {
        "training.stop_after.evaluations_without_gain": {"choice": [1]},
        "training.not_finite.action": {"choice": ["skip", "roll_back"]}, "optimizer.lr": {"uniform": [0, 1]},
    }}  # fmt: skip
    assert upgrade(space)["parameters"] == {
        "training.early_stopping.patience": {"choice": [1]},
        "training.nonfinite.action": {"choice": ["skip", "rollback"]}, "optimizer.lr": {"uniform": [0, 1]},
    }  # fmt: skip


def test_what_is_converted_is_a_copy_and_once_is_enough() -> None:
    raw = stage_of(OLD)
    before = copy.deepcopy(raw)
    once = upgrade(raw)
    assert raw == before
    assert upgrade(once) == once


def test_options_of_models_are_never_renamed() -> None:
    stage = stage_of(OLD)
    stage["model"]["options"] = {"repeats": 3, "global_batch": 1}
    assert upgrade(stage)["model"] == stage["model"]


def test_a_stage_survives_its_storage() -> None:
    stage = stored_stage(stage_of(NEW))
    stored = json.loads(json.dumps(to_store(stage)))
    assert stored["version"] == 2 and next(iter(stored)) == "version"
    assert stored_stage(stored) == stage


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"version": 3}, "version 3; this platform is too old for it and reads version 2"),
        ({"version": "2"}, "version '2'; the versions are 1 and 2"),
        ({"version": True}, "version True"),
        ({"version": 0}, "version 0"),
        ({"version": "1"}, "write version: 1"),
        ([1], "holds no stage"),
        (None, "holds no stage"),
        ({"training": {"global_batch": 1, "global_batch_size": 2}}, "training.global_batch and its new name"),
        ({"training": {"epochs": 1}}, "global_batch_size: is missing"),
    ],
)
def test_stored_stages_that_are_refused(raw: Any, said: str) -> None:
    if isinstance(raw, dict):
        raw = {**stage_of(NEW), **raw}
    with pytest.raises(UserError) as caught:
        stored_stage(raw, "run/recipe.yaml")
    assert said in str(caught.value) and "run/recipe.yaml" in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "x", 3])
def test_stored_values_that_are_no_mapping_are_refused(raw: Any) -> None:
    for read in (upgrade, stored_sections, stored_recipe, stored_config):
        with pytest.raises(UserError, match=r"^file: holds no (stage|model config)"):
            read(raw, "file")


def test_stored_keys_may_be_numbers() -> None:
    """YAML reads them so; the schema refuses them, with their place."""
    raw = {"parameters": {1: {"choice": ["roll_back"]}}, "training": {1: 2}, 3: None}
    assert upgrade(raw) == {"version": 2, "parameters": {"1": {"choice": ["roll_back"]}}, "training": {"1": 2}, 3: None}
    assert convert(raw)[1] == []


@pytest.mark.parametrize("content", [b"name: [", b"a: \xff", b"a: 2020-13-45", b"[" * 5000])
def test_damaged_stored_files_are_named(content: bytes) -> None:
    with pytest.raises(UserError, match=r"^run/recipe.yaml: not readable as YAML: \S"):
        parse_stored(content, "run/recipe.yaml")


def test_a_config_keeps_everything_else() -> None:
    config = {"format": 1, "stage": stage_of(OLD), "classes": ["a"], "metrics": {"val/top1": 0.5, "val/top4": 1.0}}
    stage = stage_of(NEW)
    stage["training"] |= {"ema_warmup": False, "cpu_linear": "torch"}
    assert stored_config(config) == {**config, "stage": stage}


@pytest.mark.parametrize("text", [OLD, NEW])
def test_an_absent_warm_up_of_the_average_is_off_in_what_was_stored_and_on_in_files(write: Any, text: str) -> None:
    """Runs of before the key averaged without a warm-up."""
    raw = stage_of(text)
    assert stored_stage(raw).training.ema_warmup is False
    assert stored_recipe({"name": "r", "stages": {"a": raw}}).stages["a"].training.ema_warmup is False
    assert stored_stage({"version": 2, **stage_of(NEW), "training": {**stage_of(NEW)["training"], "ema_warmup": True}}
                        ).training.ema_warmup is True  # fmt: skip
    assert load_recipe(write(NEW)).stages["pretrain"].training.ema_warmup is True


@pytest.mark.parametrize("text", [OLD, NEW])
def test_models_of_before_the_choice_of_a_library_keep_torchs_linear_layers(write: Any, text: str) -> None:
    assert stored_stage(stage_of(text)).training.cpu_linear == "torch"
    assert load_recipe(write(NEW)).stages["pretrain"].training.cpu_linear == "auto"


# --- the version and the identity of runs ---


def test_the_version_is_in_the_identity_of_runs_and_searches(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(NEW)
    search = load_search(write(SPACE.replace("accumulation", "accumulation_steps"), "s.yaml"))
    stage = load_recipe(path).stages["pretrain"]
    before = stage_hash(stage, "d"), search_hash(search, "d")
    assert "version" not in hashed_part(stage)
    monkeypatch.setattr("scalablevit.config.upgrade.VERSION", 3)
    assert stage_hash(stage, "d") != before[0]
    later = search.space.model_copy(update={"version": 3})
    assert search_hash(type(search)(search.name, later, search.recipe, search.stage), "d") != before[1]


def test_a_file_without_a_version_is_of_version_2(write: Any) -> None:
    assert load_recipe(write(NEW.replace("version: 2\n", ""))) == load_recipe(write(NEW))


# --- refusals ---


def test_every_old_word_in_a_file_is_named_with_its_place(write: Any) -> None:
    path = write(OLD.replace("lr: 1e-3", "lr: 30"))
    said = refusal(path).splitlines()
    fix = f"  fix: python pipelines/recipe.py upgrade {path}"
    for line, place, word in (
        (7, "data.repeats", "was renamed; write repeated_augmentation"),
        (16, "training.global_batch", "was renamed; write global_batch_size"),
        (18, "training.stop_after", "was renamed; write early_stopping"),
        (18, "training.stop_after.evaluations_without_gain", "was renamed; write patience"),
        (19, "training.not_finite", "was renamed; write nonfinite"),
        (20, "training.not_finite.action", "'roll_back' was renamed; write rollback"),
        (21, "training.on_failed_checkpoint", "was renamed; write on_checkpoint_failure"),
        (21, "training.on_failed_checkpoint", "'go_on' was renamed; write continue"),
        (22, "promotion.sure", "was renamed; write require_significance"),
    ):
        found = said.index(f"{path}:{line}: {place}: {word} (recipe version 2)")
        assert said[found + 1] == fix
    assert any("optimizer.lr: input should be less than or equal to 10, got 30" in each for each in said)
    assert not any("is missing" in each for each in said)
    assert len([each for each in said if "fix" not in each]) == 14


def test_mistakes_below_an_old_key_are_found_too(write: Any) -> None:
    said = refusal(write(OLD.replace("evaluations_without_gain: 3", "evaluations_without_gain: 0, often: 1")))
    assert "r.yaml:18: training.early_stopping.patience: input should be greater than or equal to 1, got 0" in said
    assert "r.yaml:18: training.early_stopping.often: unknown key 'often'" in said


@pytest.mark.parametrize(
    ("override", "place", "fix"),
    [
        ("training.global_batch=64", "training.global_batch: was renamed; write global_batch_size",
         "write 'training.global_batch_size=64'"),
        ("stages.pretrain.data.repeats=3", "data.repeats: was renamed; write repeated_augmentation",
         "write 'stages.pretrain.data.repeated_augmentation=3'"),
        ("training.not_finite.action=roll_back", "training.not_finite: was renamed; write nonfinite",
         "write 'training.nonfinite.action=rollback'"),
        ("training.nonfinite.action=roll_back", "'roll_back' was renamed; write rollback",
         "write 'training.nonfinite.action=rollback'"),
        ("training.stop_after.evaluations_without_gain=2", "training.stop_after: was renamed; write early_stopping",
         "write 'training.early_stopping.patience=2'"),
        ("training.stop_after={evaluations_without_gain: 2}", "was renamed; write early_stopping",
         "write 'training.early_stopping={patience: 2}'"),
        ("training={epochs: 1, global_batch: 8}", "was renamed; write global_batch_size",
         "write 'training={epochs: 1, global_batch_size: 8}'"),
        ("training.not_finite={action: roll_back}", "training.not_finite: was renamed; write nonfinite",
         "write 'training.nonfinite={action: rollback}'"),
        ("training.nonfinite.action='roll_back'", "'roll_back' was renamed; write rollback",
         "write 'training.nonfinite.action=rollback'"),
        ("training.stop_after=5", "was renamed; write early_stopping",
         "early_stopping (recipe version 2)\n  fix: write training.early_stopping: {patience: ...}"),
    ],
)  # fmt: skip
def test_old_words_in_overrides_get_the_new_spelling(write: Any, override: str, place: str, fix: str) -> None:
    said = refusal(write(NEW), override)
    assert f"override {override!r}: " in said and place in said and fix in said
    assert "recipe.py" not in said and "is missing" not in said


def test_bare_old_keys_in_overrides_lead_to_the_new_ones(write: Any) -> None:
    assert "write training.global_batch_size" in refusal(write(NEW), "global_batch=3")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("version: 1", ["r.yaml:2: version: version 1; the versions are 1 and 2, and this platform reads 2",
                        "python pipelines/recipe.py upgrade "]),
        ("version: 3", ["r.yaml:2: version: version 3; this platform is too old for it", "update the platform"]),
        ("version: two", ["r.yaml:2: version: version 'two'; the versions are 1 and 2", "write version: 2"]),
        ("version: '1'", ["r.yaml:2: version: version '1'; the versions are 1 and 2", "write version: 1"]),
        ("version: 1.0", ["r.yaml:2: version: version 1.0; the versions are 1 and 2", "write version: 1"]),
        ("version: null", ["r.yaml:2: version: version None"]),
        ("version: 2.0", ["r.yaml:2: version: version 2.0"]),
        ("version: '1'", ["r.yaml:2: version: version '1'", "fix: write version: 1, then python pipelines/recipe.py"]),
    ],
)  # fmt: skip
def test_other_versions_are_refused_with_the_other_mistakes(write: Any, line: str, said: list[str]) -> None:
    message = refusal(write(NEW.replace("version: 2", line).replace("lr: 1e-3", "lr: -1")))
    assert all(each in message for each in [*said, "optimizer.lr"])


def test_old_words_in_spaces_are_refused_at_once(write: Any) -> None:
    write(NEW)
    path = write(SPACE.replace("metric: val/top1", "metric: val/tp1\nversion: 1"), "s.yaml")
    with pytest.raises(UserError) as caught:
        load_search(path, ["space.parameters.training.global_batch={choice: [8]}", "training.not_finite.limit=3",
                           "space.budget.trails=1"])  # fmt: skip
    said = str(caught.value)
    for part in (
        f"{path}:3: version: version 1",
        f"{path}:7: parameters.training.accumulation: was renamed; write training.accumulation_steps",
        f"python pipelines/recipe.py upgrade {path}",
        "parameters.training.global_batch: was renamed; write training.global_batch_size",
        "write 'space.parameters.training.global_batch_size={choice: [8]}'",
        "training.not_finite: was renamed; write nonfinite",
        "unknown key 'trails'",
    ):
        assert part in said
    assert "the recipe refuses" not in said


def test_paths_and_overrides_are_translated() -> None:
    assert new_path(["training", "stop_after", "evaluations_without_gain"]) == [
        "training",
        "early_stopping",
        "patience",
    ]
    assert new_path(["optimizer", "lr"]) == ["optimizer", "lr"]
    assert new_override("space.budget.trials=3") == "space.budget.trials=3"
    assert new_override("optimizer.lr=1") == "optimizer.lr=1"
    assert new_override("model.options={repeats: 1e-3}") == "model.options={repeats: 1e-3}"
    assert new_override("stages.a.data={repeats: 2, root: a b}") == (
        "stages.a.data={repeated_augmentation: 2, root: a b}"
    )
    assert new_override("space.parameters={training.global_batch: {choice: [8]}}") == (
        "space.parameters={training.global_batch_size: {choice: [8]}}"
    )
    assert new_override("space.parameters.training.not_finite.action={choice: [roll_back, skip]}") == (
        "space.parameters.training.nonfinite.action={choice: [rollback, skip]}"
    )


# --- files ---


def test_a_file_is_rewritten_with_comments_order_and_quotes() -> None:
    text, changes = upgrade_text(OLD, "r.yaml")
    assert text == NEW
    assert [(each.line, each.what) for each in changes][:3] == [
        (2, "version: 2 is added"),
        (7, "data.repeats -> repeated_augmentation"),
        (8, "data.mix_probability -> mix_prob"),
    ]  # fmt: skip
    assert (20, "training.not_finite.action: roll_back -> rollback") in [(each.line, each.what) for each in changes]
    assert upgrade_text(text, "r.yaml") == (text, [])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{name: r, training: {epochs: 1, global_batch: 4}}",
         "{version: 2, name: r, training: {epochs: 1, global_batch_size: 4}}"),
        ("name: r\nmodel: {}\n", "name: r\nmodel: {}\n"),  # of version 2
        ("version: 1  # old\nname: r\ntraining: {'global_batch': 4}",
         "version: 2  # old\nname: r\ntraining: {'global_batch_size': 4}"),
        ('{\n  "name": "r",\n  "training": {"global_batch": 4, "ema_decay": 0.9}\n}\n',
         '{\n  "version": 2, "name": "r",\n'
         '  "training": {"ema_warmup": false, "global_batch_size": 4, "ema_decay": 0.9}\n}\n'),
        ("training:\r\n  global_batch: 4\r\nname: r\r\n",
         "training:\r\n  global_batch_size: 4\r\nname: r\r\nversion: 2\r\n"),
        ("# first\n---\nname: r\ndata: {repeats: 2}\n",
         "# first\n---\nname: r\nversion: 2\ndata: {repeated_augmentation: 2}\n"),
        ("name: >-\n  r\ndata: {repeats: 2}\n", "name: >-\n  r\ndata: {repeated_augmentation: 2}\nversion: 2\n"),
        ("name: >-\n  r\ndata:\n  repeats: 2\n", "version: 2\nname: >-\n  r\ndata:\n  repeated_augmentation: 2\n"),
        ("training:\n  not_finite: {action: |-\n    roll_back\n  }\n", None),
        ("name: r\ntraining:\n  not_finite:\n    action: >-\n      roll_back\n",
         "name: r\nversion: 2\ntraining:\n  nonfinite:\n    action: >-\n      rollback\n"),
        ("name: r\ntraining:\n  not_finite:\n    action: |-  # roll_back after talks with Ann\n      roll_back\n\n"
         "  # my roll_back\n  epochs: 2\n",
         "name: r\nversion: 2\ntraining:\n  nonfinite:\n    action: |-  # roll_back after talks with Ann\n"
         "      rollback\n\n  # my roll_back\n  epochs: 2\n"),
        ("name: r\ntraining:\n  ? |-  # accumulation\n    accumulation\n  # accumulation\n  : 2\n",
         "name: r\nversion: 2\ntraining:\n  ? |-  # accumulation\n    accumulation_steps\n  # accumulation\n  : 2\n"),
        ("? training\n: global_batch: 3\nname: r\n", "? training\n: global_batch_size: 3\nname: r\nversion: 2\n"),
        ("  name: r\n  data: {repeats: 1}", "  name: r\n  version: 2\n  data: {repeated_augmentation: 1}"),
        ("\ufeffname: r\ndata: {repeats: 2}\n", "\ufeffname: r\nversion: 2\ndata: {repeated_augmentation: 2}\n"),
        ("data: {repeats: 2}\nname: r", "data: {repeated_augmentation: 2}\nversion: 2\nname: r"),
        ('name: r\ntraining: {on_failed_checkpoint: "go\\x5fon"}',
         'name: r\nversion: 2\ntraining: {on_checkpoint_failure: "continue"}'),
        ("# Ann\n\n# what is varied\nparameters:\n  training.global_batch: {choice: [8]}\nmetric: val/top1\n",
         "# Ann\n\n# what is varied\nparameters:\n  training.global_batch_size: {choice: [8]}\nmetric: val/top1\n"
         "version: 2\n"),
        (SPACE, SPACE.replace("r.yaml\n", "r.yaml\nversion: 2\n").replace("accumulation", "accumulation_steps")),
    ],
)  # fmt: skip
def test_styles(old: str, new: str | None) -> None:
    if new is None:  # no YAML
        with pytest.raises(UserError, match="not readable as YAML"):
            upgrade_text(old, "r.yaml")
        return
    assert upgrade_text(old, "r.yaml")[0] == new


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: r\ntraining: {global_batch: 1, global_batch_size: 2}",
         "r.yaml:2: training.global_batch and its new name"),
        ("name: r\nmodel: {}\nversion: 3", "r.yaml:3: version: version 3; this platform is too old"),
        ("name: r\nmodel: {}\nversion: '1'", "r.yaml:3: version: version '1'; the versions are 1 and 2\n"
         "  fix: write version: 1"),
        ("training: {global_batch: 1}", "r.yaml: has no `name`: it is no recipe, or it is the stage of a run"),
        ("version: 2\nmodel: {name: resnet18}", "r.yaml: has no `name`"),
        ("name: [", "not readable as YAML"),
        ("- a", "neither a recipe nor a search space"),
        ("", "neither a recipe nor a search space"),
        ("{}", "neither a recipe nor a search space"),
        ("services: {web: 1}", "neither a recipe nor a search space"),
        ("name: conda\nchannels: [defaults]\ndependencies: [python]", "neither a recipe nor a search space"),
        ("name: ci\non: push\njobs: {test: {steps: []}}\nconcurrency: 1", "neither a recipe nor a search space"),
        ("name: compose\nversion: '3'\nservices: {web: {}}", "neither a recipe nor a search space"),
        ("name: pipeline\nstages: [build]", "neither a recipe nor a search space"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_rewritten(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        upgrade_text(text, "r.yaml")
    assert said in str(caught.value)


def test_files_of_version_2_without_a_version_stay_as_they_are() -> None:
    """Also other programs' files that look like ours."""
    for text in ("name: r\nmodel: {}\n", "method: grid\nmetric: {name: loss}\nparameters: {lr: {values: [1, 2]}}\n",
                 "metric: val/top1\nparameters: {optimizer.lr: {uniform: [0, 1]}}\n"):  # fmt: skip
        assert upgrade_text(text, "r.yaml") == (text, [])


def test_a_recipe_with_a_metric_is_a_recipe() -> None:
    assert not is_space({"name": "r", "metric": "val/top1", "model": {}})
    assert is_space({"metric": "val/top1", "parameters": {}}) and is_space({"parameters": {}, "version": 1})


# --- averages of weights ---

AVERAGED = OLD.replace("  epochs: 2\n", "  epochs: 2\n  ema_decay: 0.9  # slow\n")


def test_a_rewritten_recipe_averages_weights_as_the_runs_of_version_1_did(write: Any) -> None:
    text, changes = upgrade_text(AVERAGED, "r.yaml")
    assert text == NEW.replace("  epochs: 2\n", "  epochs: 2\n  ema_decay: 0.9  # slow\n  ema_warmup: false\n")
    what = "training.ema_warmup: false is added: version 1 averaged without a warm-up"
    assert [change.line for change in changes if change.what == what] == [16]
    stage = load_recipe(write(text)).stages["pretrain"]
    assert hashed_part(stage) == hashed_part(stored_stage(stage_of(AVERAGED)))


def test_averages_of_version_1_in_stages() -> None:
    text = """\
name: r
version: 1
training: {ema_decay: 0.9}
stages:
  first:
    training:
      ema_decay: 0.99
      epochs: 1
  second: {training: {ema_decay: null}}
  third: {model: {}}
"""
    assert (
        upgrade_text(text, "r.yaml")[0]
        == """\
name: r
version: 2
training: {ema_warmup: false, ema_decay: 0.9}
stages:
  first:
    training:
      ema_decay: 0.99
      ema_warmup: false
      epochs: 1
  second: {training: {ema_decay: null}}
  third: {model: {}}
"""
    )


@pytest.mark.parametrize(
    "text",
    [
        "name: r\nversion: 2\ntraining: {ema_decay: 0.9}\n",
        "name: r\ntraining: {ema_decay: 0.9}\n",
        "name: r\nversion: 2\ntraining: {global_batch: 8, ema_decay: 0.9}\n",
        "name: r\nversion: 1\ntraining: {ema_decay: 0.9, ema_warmup: true}\n",
    ],
)
def test_averages_of_version_2_stay_as_they_are(text: str) -> None:
    assert "ema_warmup: false" not in upgrade_text(text, "r.yaml")[0]


# --- any recipe of version 1 ---

WORD = st.text("abcdefgh_ -#':{}é", min_size=1, max_size=8)
SCALARS = st.one_of(st.integers(-9, 99), st.booleans(), st.none(), WORD, st.sampled_from(["roll_back", "go_on"]))
OLD_KEYS = {
    "data": ["repeats", "mix_probability", "mix_switch_probability", "root"],
    "training": ["global_batch", "accumulation", "on_failed_checkpoint", "epochs", "ema_decay"],
    "promotion": ["sure", "least", "margin"],
    "model": ["name", "options", "repeats"],
}


def section(keys: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys), SCALARS, max_size=4)


STAGE = st.fixed_dictionaries(
    {},
    optional={
        **{name: section(keys) for name, keys in OLD_KEYS.items() if name != "training"},
        "training": st.builds(
            dict.__or__,
            section(OLD_KEYS["training"]),
            st.fixed_dictionaries(
                {},
                optional={
                    "stop_after": section(["evaluations_without_gain"]),
                    "not_finite": section(["action", "limit"]),
                },
            ),
        ),
    },
)
RECIPE = st.builds(
    lambda name, top, stages, version: {
        **name, **version, **top, "promotion": {**top.get("promotion", {}), "sure": True},
        **({"stages": stages} if stages else {}),
    },
    st.fixed_dictionaries({"name": WORD}),
    STAGE,
    st.dictionaries(st.sampled_from(["first", "second"]), STAGE, max_size=2),
    st.sampled_from([{}, {"version": 1}]),
)  # fmt: skip


def averaged_as_before(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the averages of version 1."""
    for parent in (recipe, *recipe.get("stages", {}).values()):
        if parent.get("training", {}).get("ema_decay") is not None:
            parent["training"]["ema_warmup"] = False
    return recipe


class Plain(yaml.SafeDumper):
    """Without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def commented(text: str) -> str:
    """A comment over every line that begins a key, and one behind each plain line."""
    lines = []
    for number, line in enumerate(text.splitlines()):
        if line.strip() and not line.lstrip().startswith(("-", "?")) and line.endswith(":"):
            line = f"{line}  # behind {number}"  # noqa: PLW2901
        lines.append(line)
    return "# before\n" + "\n".join(lines) + "\n# after\n"


@given(RECIPE, st.sampled_from([True, False, None]), st.integers(20, 200))
def test_any_recipe_is_rewritten_as_it_is_converted(raw: dict[str, Any], flow: bool | None, width: int) -> None:
    text = commented(yaml.dump(raw, Dumper=Plain, default_flow_style=flow, sort_keys=False, allow_unicode=True,
                               width=width))  # fmt: skip
    parsed = strict_yaml.load(text, "")[0]
    changed, changes = upgrade_text(text, "r.yaml")
    assert strict_yaml.load(changed, "")[0] == averaged_as_before(upgrade({**parsed, "version": 1}))
    assert convert(strict_yaml.load(changed, "")[0])[1] == []
    assert changes
    assert [line.partition("#")[2] for line in text.splitlines() if "  # behind" in line or line[:1] == "#"] == [
        line.partition("#")[2] for line in changed.splitlines() if "  # behind" in line or line[:1] == "#"
    ]
    assert upgrade_text(changed, "r.yaml") == (changed, [])
