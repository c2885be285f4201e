"""What is printed of stages before anything starts."""

from dataclasses import replace
from pathlib import Path

from scalablevit.config.loading import load_recipe
from scalablevit.config.recipe import Length
from scalablevit.pipeline.plan_summary import print_plan, schedule_warnings, starts_from
from scalablevit.pipeline.resolve import ResolvedStage

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
        "tracking.register_as: tiny-pretrain",
        "off: optimizer.layer_decay, optimizer.clip_norm",
        "metrics at steps 1, 2, 5, 10 and every 2; evaluation every 6 steps and at the end; checkpoint after each "
        "evaluation and every 3 steps, the last 2 and the best 1 are kept",
        f"run folder    {tmp_path}/runs/tiny-pretrain-0",
        "http://tracking.example:5000, experiment scalablevit",
    ):
        assert part in told
    assert "canary-4711" not in told


def test_a_stage_says_from_which_other_it_starts():
    assert starts_from(resolved("segment", parents=("pretrain",))) == "the best weights of stage pretrain"


def test_a_warm_up_that_is_too_long_is_named_with_its_numbers(tmp_path, capsys):
    long = ["stages.pretrain.optimizer.lr=1e-3", "stages.pretrain.optimizer.schedule={kind: cosine, warmup_steps: 6}",
            "stages.pretrain.training.epochs=null", "stages.pretrain.training.steps=12"]  # fmt: skip
    print_plan("tiny", [resolved("pretrain", *long)], tmp_path)
    told = capsys.readouterr().out
    assert "; the largest is 0.0005, optimizer.lr is 0.001" in told
    assert (
        "  warning       the learning rate reaches 0.0005 at most, 50 % of optimizer.lr (0.001): the warm-up " in told
    )
    assert "the first 6 of the curve's 12 steps; set optimizer.schedule.warmup_prefix=true" in told
    assert schedule_warnings(resolved("pretrain", *long, "stages.pretrain.optimizer.schedule.warmup_prefix=true")) == []
    nine_tenths = [*long, "stages.pretrain.optimizer.schedule={kind: cosine, warmup_steps: 2}"]
    assert schedule_warnings(resolved("pretrain", *nine_tenths)) == [], "93 % are enough"


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
