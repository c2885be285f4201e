"""Where an override goes: to the stages that have its key, of those that a script runs and those they start from."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalablevit.config.errors import UserError, UserErrors
from scalablevit.config.loading import load_recipe
from scalablevit.config.overrides import Scope, overridden_tracking_uri, with_parents
from scalablevit.config.recipe import Recipe
from scalablevit.config.run_hash import stage_hash
from scalablevit.config.space_loading import load_search

DEMO = Path(__file__).parents[2] / "pipelines" / "recipes" / "demo.yaml"

FULL = Scope("full.py runs")
PRETRAIN = Scope("pretrain.py runs", kind="classification")
SEGMENT = Scope("segment.py runs", kind="segmentation")
DETECT = Scope("detect.py runs", kind="detection")
ALL = ["pretrain", "segment", "detect"]


def load(scope: Scope, *overrides: str) -> tuple[Recipe, list[str]]:
    """The demo with overrides, and the lines that say where they went."""
    notes: list[str] = []
    noting = Scope(scope.script, scope.kind, scope.names, notes.append)
    return load_recipe(DEMO, overrides, noting), notes


def changed(recipe: Recipe) -> list[str]:
    """Names of the stages that differ from the demo's."""
    plain = load_recipe(DEMO).stages
    return [name for name, stage in recipe.stages.items() if stage != plain[name]]


def refusal(scope: Scope, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(scope, *overrides)
    return str(caught.value)


# --- the stages that have the key ---


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=0.5", ALL),
        ("training.seed=7", ALL),
        ("data.shapes.seed=1", ALL),
        ("data.train.images=elsewhere", ALL),
        # keys of one kind of source or task
        ("data.image_size=48", ["pretrain"]),
        ("data.crop_size=64", ["segment"]),
        ("data.group_by_aspect=false", ["detect"]),
        ("data.short_side=64", ["segment", "detect"]),
        ("task.label_smoothing=0.2", ["pretrain"]),
        ("task.neck_channels=32", ["segment", "detect"]),
        ("task.anchor_size=16", ["detect"]),
        # sections that the file leaves out
        ("data.rand_augment.magnitude=5", ["pretrain"]),
        ("data.rand_augment={magnitude: 5}", ["pretrain"]),
        ("task.sliding={window: 64, stride: 32}", ["segment"]),
        ("training.early_stopping.patience=3", ALL),
        ("training.checkpoint_every.steps=3", ALL),
        ("cluster.storage=elsewhere", ALL),
        # keys that only some kinds of source or task read
        ("data.train.masks=elsewhere", ["segment"]),
        ("data.val.annotations=elsewhere.json", ["detect"]),
        # free-form keys
        ("model.options.window=7", ALL),
        ("model.options.head=linear", ALL),
        # `kind` of a section that stands in no union
        ("optimizer.schedule.warmup_lr=1e-6", ALL),
    ],
)
def test_in_a_whole_recipe_an_override_goes_to_the_stages_that_have_its_key(override: str, expected: list[str]) -> None:
    recipe, notes = load(FULL, override)
    assert changed(recipe) == expected
    assert notes == ([] if expected == ALL else [f"{override} applies to: {', '.join(expected)}"])


@pytest.mark.parametrize(
    ("scope", "override", "expected"),
    [
        (PRETRAIN, "training.seed=7", ["pretrain"]),
        (PRETRAIN, "data.image_size=48", ["pretrain"]),
        (PRETRAIN, "stages.pretrain.training.seed=7", ["pretrain"]),
        (SEGMENT, "training.seed=7", ["pretrain", "segment"]),
        (SEGMENT, "data.image_size=48", ["pretrain"]),
        (SEGMENT, "data.crop_size=64", ["segment"]),
        (SEGMENT, "data.short_side=64", ["segment"]),
        (SEGMENT, "stages.pretrain.training.seed=7", ["pretrain"]),
        (SEGMENT, "task.head=upernet", ["segment"]),
        (DETECT, "task.head=retinanet", ["detect"]),
        (SEGMENT, "data.train.masks=elsewhere", ["segment"]),
        (DETECT, "task.anchor_size=16", ["detect"]),
        (DETECT, "model.options.window=14", ["pretrain", "detect"]),
        # a stage that no longer starts from another one has no parents
        (SEGMENT, "model.init=models:/mine@champion", ["segment"]),
        # the stages of a recipe share a parent run: the same place of tracking for all
        (PRETRAIN, "tracking.uri=sqlite:///m.db", ALL),
        (PRETRAIN, "tracking.experiment=mine", ALL),
        (PRETRAIN, "tracking={experiment: mine}", ALL),
        (PRETRAIN, "tracking.register_as=mine", ["pretrain"]),
        (Scope("plan.py plans", names=("detect",)), "training.seed=7", ["pretrain", "detect"]),
        (Scope("analyse.py trains", names=("segment", "detect")), "training.seed=7", ALL),
        # the script refuses such a stage itself
        (Scope("plan.py plans", names=("nowhere",)), "training.seed=7", ALL),
    ],
)
def test_a_scripts_overrides_go_to_its_stages_and_those_they_start_from(
    scope: Scope, override: str, expected: list[str]
) -> None:
    recipe, notes = load(scope, override)
    assert changed(recipe) == expected
    silent = expected == ALL or override.startswith("stages.")
    applied = [note for note in notes if " applies to: " in note]
    assert applied == ([] if silent else [f"{override} applies to: {', '.join(expected)}"])


def test_a_stage_that_does_not_read_a_key_keeps_its_hash() -> None:
    """Its parent would train again from zero."""
    chosen = "stages.segment.optimizer.name=sgd"
    before, after = load(FULL, chosen)[0].stages, load(FULL, chosen, "optimizer.momentum=0.8")
    assert after[1] == ["optimizer.momentum=0.8 applies to: segment"]
    changed_hashes = [name for name in ALL if stage_hash(before[name], "d") != stage_hash(after[0].stages[name], "d")]
    assert changed_hashes == ["segment"]
    masks = load(SEGMENT, "data.train.masks=elsewhere")[0].stages["pretrain"]
    assert stage_hash(masks, "d") == stage_hash(load_recipe(DEMO).stages["pretrain"], "d")


@pytest.mark.parametrize(
    ("scope", "override", "expected"),
    [
        (FULL, "model.init=w.pth", "model.init=w.pth: segment, detect no longer start from pretrain"),
        (SEGMENT, "model.init=w.pth", "model.init=w.pth: segment no longer starts from pretrain"),
        (FULL, "model={name: resnet18}", "model={name: resnet18}: segment, detect no longer start from pretrain"),
        (FULL, "stages.segment.model.init=w.pth", None),  # as written
        (FULL, "model.name=resnet18", None),
        (FULL, "tracking.register_as=x", "tracking.register_as=x: pretrain, segment, detect register versions of one "
         "model"),
        (PRETRAIN, "tracking.register_as=x", None),
        (FULL, "tracking.log_images=true", None),
    ],
)  # fmt: skip
def test_what_an_override_for_all_does_to_the_chain_is_noted(scope: Scope, override: str, expected: str | None) -> None:
    notes = [note for note in load(scope, override)[1] if " applies to: " not in note]
    assert notes == ([] if expected is None else [expected])


def test_parents_are_those_after_the_overrides() -> None:
    recipe, _ = load(SEGMENT, "training.seed=7", "stages.segment.model.init=null")
    assert changed(recipe) == ["segment"]
    assert "data.image_size is a key of pretrain" in refusal(SEGMENT, "model.init=null", "data.image_size=48")


def test_a_script_runs_the_kinds_after_the_overrides() -> None:
    """A stage that an override makes one of the script's own."""
    switched = "stages.detect.task={kind: classification}"
    data = "stages.detect.data={source: image_folder, root: r, train: {images: t}, val: {images: v}}"
    recipe, notes = load(PRETRAIN, switched, data, "data.image_size=48", "training.seed=7")
    assert recipe.stages["detect"].training.seed == 7
    assert recipe.stages["detect"].data.model_dump()["image_size"] == 224  # the override of the whole section beats it
    assert notes == ["data.image_size=48 applies to: pretrain", "training.seed=7 applies to: pretrain, detect"]


def test_keys_are_those_of_the_kind_after_the_overrides() -> None:
    """In either order."""
    data = "{source: tar_shards, root: r, train: {images: t}, val: {images: v}}"
    for overrides in (["data.image_size=48", f"stages.pretrain.data={data}"], [f"data={data}", "data.image_size=48"]):
        recipe, _ = load(PRETRAIN, *overrides)
        assert recipe.stages["pretrain"].data.source == "tar_shards"


def test_stages_that_start_from_each_other_are_found() -> None:
    inits = {"a": None, "b": "stage:a", "c": "stage:b", "d": "timm:x", "e": 3, "f": "stage:nowhere", "g": "stage:g"}
    assert with_parents(["c"], inits) == ["a", "b", "c"]
    assert with_parents(["d", "b"], inits) == ["a", "b", "d"]
    assert with_parents(["e", "f", "g"], inits) == ["e", "f", "g"]


# --- precedence ---


def test_an_override_for_a_stage_beats_one_for_all_in_either_order() -> None:
    overrides = ["stages.segment.optimizer.lr=0.25", "optimizer.lr=0.5"]
    for ordered in (overrides, overrides[::-1]):
        recipe, notes = load(FULL, *ordered)
        assert [stage.optimizer.lr for stage in recipe.stages.values()] == [0.5, 0.25, 0.5]
        assert notes == ["optimizer.lr=0.5 applies to: pretrain, detect"]


def test_the_last_of_two_equal_overrides_counts() -> None:
    recipe, notes = load(FULL, "training.seed=1", "training.seed=2", "data.crop_size=32", "data.crop_size=64")
    assert {stage.training.seed for stage in recipe.stages.values()} == {2}
    assert notes[0] == "training.seed=1 applies to: no stage (other overrides replace it)"
    assert recipe.stages["segment"].data.model_dump()["crop_size"] == 64


# --- refusals ---


@pytest.mark.parametrize(
    ("scope", "override", "expected"),
    [
        # a key that only other stages have
        (PRETRAIN, "data.crop_size=64", ["has no effect here: pretrain.py runs pretrain; ", "is a key of segment"]),
        (PRETRAIN, "task.neck_channels=8", ["pretrain.py runs pretrain", "is a key of segment, detect"]),
        (
            SEGMENT,
            "task.anchor_size=8",
            ["has no effect here: segment.py runs segment (starting from pretrain)", "is a key of detect"],
        ),
        (PRETRAIN, "data.train.masks=m", ["pretrain.py runs pretrain; data.train.masks is read by segment"]),
        # a stage that is not run
        (PRETRAIN, "stages.detect.training.seed=7", ["has no effect here: pretrain.py runs pretrain\n"]),
        (SEGMENT, "stages.detect.training.seed=7", ["segment.py runs segment (starting from pretrain)\n"]),
        (FULL, "stages.nowhere.training.seed=7", ["this recipe's stages are pretrain, segment, detect"]),
        # a key that none has: the nearest one of all
        (FULL, "data.imag_size=48", ["data.imag_size: unknown key", "did you mean 'image_size'?"]),
        (FULL, "data.crop_sise=48", ["data.crop_sise: unknown key", "did you mean 'crop_size'?"]),
        (FULL, "task.anchor_sise=8", ["did you mean 'anchor_size'?"]),
        (FULL, "data.rand_augment.magnitud=5", ["did you mean 'magnitude'?"]),
        (FULL, "optimizer.lrr=1", ["optimizer.lrr: unknown key 'lrr'", "did you mean 'lr'?"]),
        (FULL, "optimizer.lr.x=1", ["optimizer.lr is no section but 0.002"]),
        (FULL, "optimiser.lr=1", ["no section 'optimiser'\n", "fix: write optimizer.lr"]),
        (FULL, "data.std.0=1", ["data.std"]),
        (FULL, "data.image_folder.image_size=1", ["data.image_folder: unknown key"]),
        (PRETRAIN, "data.imag_size=48", ["'data.imag_size=48': data.imag_size", "did you mean 'image_size'?"]),
        (PRETRAIN, "data.crop_sise=48", ["stages.segment.data.crop_sise", "did you mean 'crop_size'?"]),
        # a name of other tools, whose key depends on the stage
        (SEGMENT, "data.imgsz=64", ["'data.imgsz=64': data.imgsz: unknown key 'imgsz'\n  fix: write data.crop_size"]),
        (SEGMENT, "imgsz=64", ["fix: write data.crop_size"]),
        (DETECT, "imgsz=64", ["fix: write data.short_side"]),
        (FULL, "imgsz=64", ["fix: write data.image_size"]),
        (FULL, "data.randaugment=1", ["fix: write data.rand_augment"]),
        (DETECT, "data.mixup_alpha=1", ["fix: leave it out: only classification has data.mixup"]),
        # a stage first, or a stage as a whole
        (FULL, "detect.training.seed=3", ["no section 'detect'\n", "fix: write stages.detect.training.seed=3"]),
        (FULL, "stages.detect.segment.x=1", ["no section 'segment'", "fix: sections: "]),
        (FULL, "stages.detect.detect.training.seed=3", ["fix: write stages.detect.training.seed=3"]),
        (FULL, "stages.segment.imgsz=64", ["no section 'imgsz'\n", "fix: write data.crop_size"]),
        (FULL, "stages.detect.budget.trials=3", ["fix: write space.budget.trials=3 for "]),
        (FULL, "detect=3", ["fix: write stages.detect.<section>.<key>=value"]),
        (FULL, "stages.detect={a: 1}", ["an override sets a section or a key of a stage",
                                        "fix: write stages.detect.<section>.<key>=value"]),
        (FULL, "stages.detekt.training.seed=3", ["no stage 'detekt'; did you mean 'detect'?"]),
        # a key of a search space
        (FULL, "budget.trials=3", ["no section 'budget'\n", "fix: write space.budget.trials=3 for "]),
        # keys that do not fit together
        (FULL, "training.steps=10", ["'training.steps=10': training.steps: give exactly one of epochs and steps",
                                     "fix: add training.epochs=null"]),
        (FULL, "stages.detect.training.steps=10", ["fix: add stages.detect.training.epochs=null"]),
        (FULL, "stages.detect.optimizer.schedule.warmup_epochs=1",
         ["fix: add stages.detect.optimizer.schedule.warmup_steps=0"]),
        (FULL, "stages.segment.model.init=stage:nope", ["stages.segment.model.init is 'stage:nope', which is no earl"]),
        (FULL, "stages.detect.tracking.experiment=y", ["must be the same in all stages"]),
        # a value that is wrong for all that have the key
        (FULL, "optimizer.lr=-1", ["'optimizer.lr=-1': optimizer.lr: ", "got -1"]),
        (FULL, "data.image_size=-1", ["'data.image_size=-1': data.image_size: ", "got -1"]),
        (FULL, "data.source=nowhere", ["'data.source=nowhere': data.source: must be 'image_folder'", "got 'nowhere'"]),
        # a value that is wrong for one of them
        (
            FULL,
            "task.head=retinanet",
            ["stages.segment.task.head", "got 'retinanet'", "fix: write stages.detect.task.head=..."],
        ),
        (FULL, "task.head=nowhere", ["'semantic_fpn' or 'upernet'", "stages.segment.task.head=...", "mask_rcnn"]),
        (FULL, "promotion.metric=top1", ["stages.segment: promotion.metric must be", "stages.pretrain.promotion."]),
        (FULL, "cluster.workers=20", ["stages.detect: training.global_batch_size (16) is less", "fix: write stages."]),
        (FULL, "training.accumulation_steps=24", ["stages.detect.training: global_batch_size (16)"]),
        # a kind that only some stages can have
        (
            FULL,
            "data.source=tar_shards",
            [
                "'data.source=tar_shards': stages.segment.data.source: task segmentation needs data.source mask_pairs",
                "stages.detect.data.source: task detection needs data.source coco, not tar_shards",
                "fix: write stages.pretrain.data.source=...",
            ],
        ),
        (FULL, "task.kind=segmentation", ["stages.pretrain.task.kind: task segmentation needs data.source mask_pairs"]),
    ],
)  # fmt: skip
def test_each_mistake_names_override_stage_value_and_remedy(scope: Scope, override: str, expected: list[str]) -> None:
    message = refusal(scope, override)
    assert f"override {override!r}" in message
    for part in expected:
        assert part in message, message
    assert "ignore_index'?" not in message


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=-1",
        "optimizer.lrr=1",
        "data.imag_size=48",
        "data.short_side=-1",
        "model.optionss.x=1",
        "training.steps=10",
        "data.imgsz=3",
        "model.init=stage:nope",
    ],
)
def test_a_mistake_is_reported_once(override: str) -> None:
    assert refusal(FULL, override).count("override") == 1


def test_all_mistakes_are_reported_at_once() -> None:
    overrides = ["optimizer.lr", "optimiser.lr=1", "stages.detect.optimizer.lr=1", "data.crop_size=1",
                 "data.image_size=1", "name=a b", "stages.nowhere.data.root=x", "cluster.workers=0"]  # fmt: skip
    with pytest.raises(UserErrors) as caught:
        load(PRETRAIN, *overrides)
    text = str(caught.value)
    assert len(caught.value.errors) == len(overrides), text
    for override in overrides:
        assert f"override {override!r}" in text


def test_of_two_overrides_that_do_not_fit_one_is_to_go() -> None:
    assert "leave one of the overrides out" in refusal(FULL, "training.epochs=3", "training.steps=10")


def test_a_comment_in_an_override_is_refused() -> None:
    """YAML would drop it, and `run #3` would be `run`."""
    message = refusal(FULL, "tracking.experiment=run #3")
    assert "override 'tracking.experiment=run #3': '#3' is a comment in YAML: the value would be 'run'" in message
    assert """tracking.experiment='"run #3"'""" in message
    assert "is a comment" in refusal(FULL, "tracking.experiment=#3")
    for written in ('"run #3"', "run#3"):
        (recipe, _) = load(FULL, f"tracking.experiment={written}")
        assert recipe.stages["pretrain"].tracking.experiment == written.strip('"')


def test_the_line_of_an_override_shows_no_credentials() -> None:
    _, notes = load(PRETRAIN, "model.init=s3://me:secret@host/file")
    assert notes == ["model.init=s3://***@host/file applies to: pretrain"]


def test_nothing_is_said_of_overrides_when_the_recipe_is_refused() -> None:
    notes: list[str] = []
    with pytest.raises(UserError):
        load_recipe(DEMO, ["data.crop_size=64", "optimizer.lr=-1"], Scope(note=notes.append))
    assert notes == []


@given(
    st.sampled_from([FULL, PRETRAIN, SEGMENT, Scope(names=("nowhere",))]),
    st.sampled_from(["task", "data", "model.init", "task.kind", "data.source", "data.{}", "stages.detect.{}", "{}"]),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(["[]", "{}", "3", "null", "{kind: [a]}", "{source: {}}", "coco", "stage:segment"]),
)
def test_any_override_loads_or_gives_a_user_error(scope: Scope, path: str, key: str, value: str) -> None:
    try:
        load(scope, f"{path.replace('{}', key)}={value}", "data.image_size=48")
    except UserError as error:
        assert "override" in str(error) or "stages." in str(error)


def test_a_recipe_without_stages_is_refused_as_without_overrides(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: r\nstages: {}\n")
    with pytest.raises(UserError, match="at least one stage"):
        load_recipe(tmp_path / "r.yaml", ["optimizer.lr=1", "data.source=coco", "tracking.uri=x"], SEGMENT)


# --- a search ---

SPACE = """\
metric: val/miou
budget: {trials: 2}
parameters:
  optimizer.lr: {loguniform: [1e-4, 1e-2]}
"""


@pytest.mark.parametrize("base", [DEMO, None])
def test_the_overrides_of_a_search_go_to_the_searched_stage_and_its_parents(base: Path | None, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(SPACE + "stage: segment\n" + (f"recipe: {DEMO}\n" if base is None else ""))
    notes: list[str] = []
    search = load_search(space, ["training.seed=7", "data.crop_size=64"], base, notes.append)
    assert changed(search.recipe) == ["pretrain", "segment"]
    assert notes == ["training.seed=7 applies to: pretrain, segment", "data.crop_size=64 applies to: segment"]
    with pytest.raises(UserErrors) as caught:
        load_search(space, ["task.anchor_size=8", "stages.detect.training.seed=1", "space.budget.trials=0"], base)
    text = str(caught.value)
    assert text.count("has no effect here: tune.py searches segment (starting from pretrain)") == 2
    assert "budget.trials" in text


def test_the_overrides_of_a_search_without_a_stage_go_to_all(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    with pytest.raises(UserError, match="names no stage"):
        load_search(tmp_path / "space.yaml", ["training.seed=7", "task.anchor_size=8"], DEMO)


@pytest.mark.parametrize(
    ("overrides", "uri"),
    [
        ([], None),
        (["tracking.experiment=a", "data.root=tracking.uri=b"], None),
        (["tracking.uri=http://a", "tracking.uri=http://b"], "http://b"),
        (["stages.pretrain.tracking.uri='http://a'"], "http://a"),
        (["tracking={uri: http://a}", "tracking.experiment=x"], "http://a"),
        (["tracking.uri=http://a", "tracking.uri=null"], None),
    ],
)
def test_the_registry_is_the_one_that_the_recipe_gets(overrides: list[str], uri: str | None) -> None:
    assert overridden_tracking_uri(overrides) == uri


def test_an_address_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"tracking\.uri is no address, got 5"):
        overridden_tracking_uri(["tracking.uri=5"])
