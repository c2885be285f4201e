"""What is printed of stages before anything starts."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.config.shipped import DEMO, RECIPES
from scalablevit.pipeline import plan_summary
from scalablevit.pipeline.plan_summary import (
    few_images_warning,
    print_plan,
    schedule_warnings,
    shared_facts,
    starts_from,
)
from scalablevit.pipeline.resolve import ResolvedStage, resolve, size_warnings
from scalablevit.pipeline.resolved_recipe import resolved_text, write_resolved

SOON = [f"stages.{name}.optimizer.schedule.warmup_steps=1" for name in ("segment", "detect")]
TINY = Path(__file__).parents[1] / "end_to_end" / "tiny.yaml"


def resolved(name, *overrides, parents=()):
    """A stage as if its data had been looked at."""
    stage = load_recipe(TINY, overrides).stages[name]
    return ResolvedStage(
        name=name, stage=stage, run_name=f"tiny-{name}-0", hash="0", digest="content:0", classes=("cat", "dog"),
        train_samples=96, val_samples=25, unreadable=1, ignored=(), notes=(), length=Length.of(stage, 96),
        parents=parents,
    )  # fmt: skip


def test_every_automatic_value_is_made_concrete_and_no_password_shown(tmp_path, capsys):
    overrides = ["tracking.uri=http://someone:canary-4711@tracking.example:5000", "model.drop_path_rate=null",
                 "stages.pretrain.training.checkpoint_every={steps: 3}"]  # fmt: skip
    print_plan("tiny", [resolved("pretrain", *overrides)], tmp_path)
    told = capsys.readouterr().out
    for part in (
        "96 training and 25 validation samples, 2 classes, 1 unreadable",
        "1.37 M parameters",
        "GFLOPs",
        "starts from   random weights (seed 0)",
        "model.drop_path_rate: 0.05, the architecture's own",
        "run           tiny-pretrain-0, registered as tiny-pretrain",
        "metrics       at steps 1, 2, 5, 10 and every 2\n",
        "warm-up 0, evaluation every 6 and at the end\n",
        "checkpoints   after each evaluation and every 3 steps; the last 2 and the best 1 are kept\n",
        f"run folders   {tmp_path}/runs\n",
        "http://tracking.example:5000, experiment scalablevit",
    ):
        assert part in told
    assert "canary-4711" not in told


def test_the_plan_says_whom_notifications_go_to_without_an_address(tmp_path, capsys, monkeypatch):
    stage = resolved("pretrain", "tracking.notify=[finished, failed]")
    print_plan("tiny", [stage], tmp_path)
    assert "notifications finished, failed; to nobody: SCALABLEVIT_NOTIFY_WEBHOOK and " in capsys.readouterr().out
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_WEBHOOK", "https://hooks.example/canary")
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_FORMAT", "slack")
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_COMMAND", "/canary/notify")
    print_plan("tiny", [stage, resolved("segment")], tmp_path)
    told = capsys.readouterr().out
    assert told.count("notifications ") == 1 and "canary" not in told and "hooks.example" not in told
    assert "  notifications finished, failed; to the webhook (slack, not signed) and the command\n" in told


def test_settings_of_no_use_are_a_mistake_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALABLEVIT_NOTIFY_FORMAT", "xml")
    resolve(load_recipe(TINY), tmp_path, ["pretrain"])
    with pytest.raises(UserError, match="SCALABLEVIT_NOTIFY_FORMAT: 'xml' is no format"):
        resolve(load_recipe(TINY, ["tracking.notify=[failed]"]), tmp_path, ["pretrain"])


def test_a_stage_says_from_which_other_it_starts():
    assert starts_from(resolved("segment", parents=("pretrain",))) == "the best weights of stage pretrain"


def test_a_finished_run_takes_no_time(tmp_path, capsys):
    stage = resolved("pretrain")
    (tmp_path / "runs" / stage.run_name).mkdir(parents=True)
    (tmp_path / "runs" / stage.run_name / "result.json").write_text("{}")
    print_plan("tiny", [stage], tmp_path)
    assert "time          none: this run has finished, and the stage is skipped\n" in capsys.readouterr().out


def test_too_few_images_for_random_weights_are_named_with_their_numbers():
    few = replace(resolved("pretrain"), train_samples=15)
    (warning,) = few_images_warning(few)
    assert warning.startswith("15 training images are 7.5 for each of 2 classes") and "model.init" in warning
    assert few_images_warning(replace(few, train_samples=20)) == []
    assert few_images_warning(replace(few, parents=("pretrain",))) == []


def test_a_warm_up_that_is_too_long_is_named_with_its_numbers(tmp_path, capsys):
    long = ["stages.pretrain.optimizer.lr=1e-3", "stages.pretrain.optimizer.schedule={kind: cosine, warmup_steps: 6}",
            "stages.pretrain.training.epochs=null", "stages.pretrain.training.steps=12"]  # fmt: skip
    print_plan("tiny", [resolved("pretrain", *long)], tmp_path)
    told = capsys.readouterr().out
    assert "; largest 0.0005, optimizer.lr 0.001\n" in told
    assert (
        "  warning       the learning rate reaches 0.0005 at most, 50 % of optimizer.lr (0.001): the warm-up " in told
    )
    assert "the first 6 of the curve's 12 steps; set optimizer.schedule.warmup_prefix=true" in told
    assert schedule_warnings(resolved("pretrain", *long, "stages.pretrain.optimizer.schedule.warmup_prefix=true")) == []
    nine_tenths = [*long, "stages.pretrain.optimizer.schedule={kind: cosine, warmup_steps: 2}"]
    assert schedule_warnings(resolved("pretrain", *nine_tenths)) == [], "93 % are enough"


@pytest.mark.parametrize(
    ("schedule", "largest", "at", "key"),
    [("{kind: cosine, min_lr: 0.01}", "0.00985", 11, "min_lr"),
     ("{kind: polynomial, min_lr: 0.01}", "0.00904", 11, "min_lr"),
     ("{kind: constant, warmup_steps: 4, warmup_lr: 0.01}", "0.01", 0, "warmup_lr")],
)  # fmt: skip
def test_a_rate_that_rises_above_lr_is_named_with_its_numbers(schedule, largest, at, key):
    (warning,) = schedule_warnings(resolved("pretrain", f"stages.pretrain.optimizer.schedule={schedule}"))
    assert warning == (
        f"the learning rate is largest at step {at} of 12, {largest}, above optimizer.lr (0.001): "
        f"optimizer.schedule.{key} 0.01 is larger; lower it"
    )
    equal = schedule.replace("0.01", "0.001")
    assert schedule_warnings(resolved("pretrain", f"stages.pretrain.optimizer.schedule={equal}")) == []


def test_decays_after_the_end_of_the_training_are_named_with_their_numbers():
    schedule = "stages.pretrain.optimizer.schedule={kind: multistep, decay_epochs: [1, 2, 30]"
    (warning,) = schedule_warnings(resolved("pretrain", f"{schedule}}}"))
    assert warning == (
        "optimizer.schedule.decay_epochs 2, 30 never come: the training ends after 12 steps (2 epochs); leave them "
        "out or train longer"
    )
    after = f"{schedule}, warmup_steps: 7, warmup_prefix: true}}"
    (warning,) = schedule_warnings(resolved("pretrain", after))
    assert "decay_epochs 1, 2, 30, counted from the end of the warm-up, never come" in warning
    longer = "stages.pretrain.training={epochs: 31, global_batch_size: 16}"
    assert schedule_warnings(resolved("pretrain", f"{schedule}}}", longer)) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.ema_decay=0.0002", "training.ema_decay 0.0002 averages over 1 steps, so it is all but the plain "
         "weights; some tools give 1 - decay, here 0.9998"),
        ("optimizer={name: sgd, lr: 0.1}", "optimizer.weight_decay 0.05 is strong for sgd, where 1e-4 is usual; 0.05 "
         "is the default for adamw"),
        ("training.early_stopping={patience: 2}", "training.early_stopping.patience 2 never ends this training: it has "
         "2 evaluations, and the first is a gain"),
        ("training.early_stopping={patience: 1, min_delta: 0.5}", "training.early_stopping.min_delta 0.5 is 50 points "
         "of val/top1, a fraction: smaller gains count as none; 0.005 is half a point"),
    ],
)  # fmt: skip
def test_a_rule_with_another_meaning_than_is_likely_meant_is_named_with_its_numbers(override, said):
    assert schedule_warnings(resolved("pretrain", f"stages.pretrain.{override}")) == [said]


def test_usual_rules_are_no_warnings():
    usual = ["training.ema_decay=0.9", "optimizer={name: sgd, lr: 0.1, weight_decay: 1e-4}",
             "training.early_stopping={patience: 1, min_delta: 0.005}"]  # fmt: skip
    assert schedule_warnings(resolved("pretrain", *(f"stages.pretrain.{override}" for override in usual))) == []


def test_a_batch_of_more_images_than_there_are_is_named_with_its_numbers():
    few = replace(resolved("pretrain", "stages.pretrain.training.global_batch_size=128"), train_samples=12)
    (warning,) = schedule_warnings(few)
    assert warning.startswith("training.global_batch_size 128 is more than the 12 training images"), warning
    assert "10.7 times" in warning
    assert schedule_warnings(replace(few, train_samples=128)) == []


def test_an_average_that_is_longer_than_the_training_is_named_with_its_numbers():
    long = ["stages.pretrain.training.epochs=null", "stages.pretrain.training.steps=60",
            "stages.pretrain.training.ema_decay=0.9999"]  # fmt: skip
    (warning,) = schedule_warnings(resolved("pretrain", *long, "stages.pretrain.training.ema_warmup=false"))
    assert warning.startswith("training.ema_decay 0.9999 averages over 10000 steps, and the training has 60: 99.4 % of")
    assert "set training.ema_warmup=true" in warning
    assert schedule_warnings(resolved("pretrain", *long)) == [], "warmed up, it is as long as the training allows"
    short = [*long, "stages.pretrain.training.ema_warmup=false", "stages.pretrain.training.ema_decay=0.98"]
    assert schedule_warnings(resolved("pretrain", *short)) == [], "50 steps of 60"


def test_an_evaluation_that_sees_little_of_an_image_is_named_with_its_numbers():
    (warning,) = size_warnings(resolved("pretrain", "stages.pretrain.data.eval_resize=256").stage.data)
    assert warning == (
        "evaluation scales images to a short side of 256 (data.eval_resize) and sees the central 32 x 32 pixels "
        "(data.image_size), 1.6 % of a square one; data.eval_resize=37 would show 75 %"
    )
    assert size_warnings(resolved("pretrain").stage.data) == ()
    usual = ["stages.pretrain.data.image_size=224", "stages.pretrain.data.eval_resize=256"]
    assert size_warnings(resolved("pretrain", *usual).stage.data) == ()
    assert size_warnings(resolved("segment").stage.data) == ()
    (warning,) = size_warnings(resolved("segment", "stages.segment.data.crop_size=256").stage.data)
    assert warning == (
        "training crops of 256 x 256 pixels (data.crop_size) are taken from images whose short side has at most 64 "
        "(data.short_side, data.scale_range): at least 75 % of each is padding; data.crop_size=64 has none"
    )


def test_an_evaluation_at_other_sizes_than_the_trainings_is_named_with_both():
    assert size_warnings(resolved("detect").stage.data) == ()
    for override in ("short_side=32", "train_short_sides=[16,40]"):
        (warning,) = size_warnings(resolved("detect", f"stages.detect.data.{override}").stage.data)
        assert warning.startswith("training scales short sides to ") and "evaluation to " in warning
    assert (
        "to 48..64 pixels (data.train_short_sides), evaluation to 32 (data.short_side)"
        in size_warnings(resolved("detect", "stages.detect.data.short_side=32").stage.data)[0]
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's stages on fewer images, which fills as many lines."""
    recipe = load_recipe(RECIPES / DEMO, ["data.shapes={train_images: 96, val_images: 12, image_size: 96}", *SOON])
    root = tmp_path_factory.mktemp("root")
    return recipe, resolve(recipe, root), root


def test_the_plan_of_three_stages_fits_into_80_lines_of_a_terminal(demo, capsys, monkeypatch):
    recipe, stages, root = demo
    line = "{} with semantic_fpn at 96x96: 1.79 M parameters, 0.113 GFLOPs as the paper counts, 0.117 G with attention"
    monkeypatch.setattr(plan_summary, "model_facts", lambda resolved: {
        "model": line.format(f"scalablevit_{resolved.name}"),
        "automatic": "model.drop_path_rate: 0.05, the architecture's own",
        "macs_per_pixel": "1000",
    })  # fmt: skip
    print_plan(recipe.name, stages, root)
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    # a temporary folder's name may be of any length
    assert sum(math.ceil(max(1, len(each.replace(str(root), "/root"))) / 100) for each in lines) <= 75, shown
    assert [shown.count(f"\n  {name} ") for name in ("resources", "tracking", "run folders", "run  ", "data")] == [
        1, 1, 1, 3, 3,
    ]  # fmt: skip
    assert lines.index("all stages") < lines.index("stage pretrain") < lines.index("stage detect")


def test_a_training_of_hours_on_a_cpu_is_said_by_the_models_operations(demo, capsys, tmp_path):
    """A classifier is nearly all backbone, so both counts agree."""
    recipe, stages, _ = demo
    stage = stages[0].stage
    facts = plan_summary.model_facts(stages[0])
    per_pixel = float(facts["macs_per_pixel"])
    macs = re.search(r"([\d.]+) GFLOPs as the paper counts", facts["model"])
    assert macs is not None
    assert per_pixel == pytest.approx(float(macs[1]) * 1e9 / stage.data.image_size**2, rel=0.01)
    long = replace(stages[0], length=stages[0].length.model_copy(update={"total": 10_000_000}))
    print_plan(recipe.name, [long], tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "warning probably more than " in out and "GFLOP/s a core" in out, out


def test_only_what_is_the_same_for_all_stages_stands_above_them():
    facts = [{"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2"}]
    assert shared_facts(facts) == {"a": "1"}
    assert shared_facts(facts[:1]) == {}


def test_the_resolved_recipe_is_a_recipe_of_the_same_runs(demo, tmp_path, capsys):
    recipe, stages, root = demo
    file = tmp_path / "new" / "demo.yaml"
    write_resolved(recipe, stages, file)
    assert capsys.readouterr().out == f"resolved recipe: {file}\n"
    assert [each.run_name for each in resolve(load_recipe(file), root)] == [each.run_name for each in stages]
    secret = replace(
        stages[0],
        stage=load_recipe(TINY, ["tracking.uri=http://someone:canary-4711@tracking.example"]).stages["pretrain"],
    )
    assert "canary" not in resolved_text(recipe, [secret])
    write_resolved(recipe, stages, Path("/dev/null/demo.yaml"))
    assert capsys.readouterr().out.startswith("the resolved recipe was not written to /dev/null/demo.yaml: ")
