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
from scalablevit.config.rewriting import upgrade_text
from scalablevit.config.run_hash import hashed_part, stage_hash
from scalablevit.config.space import Space, search_hash
from scalablevit.config.space_loading import load_search
from scalablevit.config.stored import stored_config, stored_recipe, stored_stage, to_store
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


def test_a_config_keeps_everything_else() -> None:
    config = {"format": 1, "stage": stage_of(OLD), "classes": ["a"], "metrics": {"val/top1": 0.5, "val/top4": 1.0}}
    stage = stage_of(NEW)
    stage["training"]["ema_warmup"] = False
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
        ("version: 1  # old\nname: r\ntraining: {'global_batch': 4}",
         "version: 2  # old\nname: r\ntraining: {'global_batch_size': 4}"),
        ("training:\r\n  global_batch: 4\r\nname: r\r\n",
         "training:\r\n  global_batch_size: 4\r\nname: r\r\nversion: 2\r\n"),
        ("# first\n---\nname: r\nmodel: {}\n", "# first\n---\nname: r\nversion: 2\nmodel: {}\n"),
        ("name: >-\n  r\nmodel: {}\n", "version: 2\nname: >-\n  r\nmodel: {}\n"),
        ("training:\n  not_finite: {action: |-\n    roll_back\n  }\n", None),
        ("training:\n  not_finite:\n    action: >-\n      roll_back\n",
         "version: 2\ntraining:\n  nonfinite:\n    action: >-\n      rollback\n"),
        ("? training\n: global_batch: 3\n", "version: 2\n? training\n: global_batch_size: 3\n"),
        ("  name: r\n  data: {repeats: 1}", "  name: r\n  version: 2\n  data: {repeated_augmentation: 1}"),
        ("\ufeffname: r\nmodel: {}\n", "\ufeffname: r\nversion: 2\nmodel: {}\n"),
        ("name: r", "version: 2\nname: r"),
        ('training: {on_failed_checkpoint: "go\\x5fon"}',
         'version: 2\ntraining: {on_checkpoint_failure: "continue"}'),
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
        ("training: {global_batch: 1, global_batch_size: 2}", "r.yaml:1: training.global_batch and its new name"),
        ("name: r\nversion: 3", "version 3; this platform is too old"),
        ("name: [", "not readable as YAML"),
        ("- a", "neither a recipe nor a search space"),
        ("", "neither a recipe nor a search space"),
        ("{}", "neither a recipe nor a search space"),
        ("services: {web: 1}", "neither a recipe nor a search space"),
    ],
)
def test_files_that_cannot_be_rewritten(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        upgrade_text(text, "r.yaml")
    assert said in str(caught.value)


# --- any recipe of version 1 ---

WORD = st.text("abcdefgh_ -#':{}é", min_size=1, max_size=8)
SCALARS = st.one_of(st.integers(-9, 99), st.booleans(), st.none(), WORD, st.sampled_from(["roll_back", "go_on"]))
OLD_KEYS = {
    "data": ["repeats", "mix_probability", "mix_switch_probability", "root"],
    "training": ["global_batch", "accumulation", "on_failed_checkpoint", "epochs"],
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
    lambda name, top, stages, version: {**name, **version, **top, **({"stages": stages} if stages else {})},
    st.fixed_dictionaries({"name": WORD}),
    STAGE,
    st.dictionaries(st.sampled_from(["first", "second"]), STAGE, max_size=2),
    st.sampled_from([{}, {"version": 1}]),
)


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
    assert strict_yaml.load(changed, "")[0] == upgrade({**parsed, "version": 1})
    assert convert(strict_yaml.load(changed, "")[0])[1] == []
    assert changes
    assert [line.partition("#")[2] for line in text.splitlines() if "  # behind" in line or line[:1] == "#"] == [
        line.partition("#")[2] for line in changed.splitlines() if "  # behind" in line or line[:1] == "#"
    ]
    assert upgrade_text(changed, "r.yaml") == (changed, [])
