"""The paper's analysis from its command line, over untrained models."""

import csv
import json
import re
from dataclasses import replace

import pytest
import torch
from harness.toys import finished_run, make_root, val_images

from scalablevit.cli import analyse
from scalablevit.cli.tree import parse
from scalablevit.config.ablation import ArmStage
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe
from scalablevit.config.shipped import RECIPES
from scalablevit.models.counting import Cost
from scalablevit.paper import ablation, costs
from scalablevit.pipeline import chain, cluster
from scalablevit.runs.result import StageResult

LARGE = ["data.image_size=64", "data.eval_resize=64"]
RESULT = StageResult(
    name="", run_name="run", uid="0" * 32, folder="", metric="val/top1", value=0.5, step=300, metrics={}, classes=(),
    images_per_s=1.0, minutes=1.0, reason="finished", checkpoint="", weights_sha256="", registered_as="", lineage={},
    last_value=0.25, last_step=400,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Finished runs: `lim`, `lem`, `wsa`, and `segment` of another task."""
    root = make_root(tmp_path_factory.mktemp("analysed"))
    arms = {"lim": "lim", "lem": "lem"}
    for run, kind in arms.items():
        finished_run(root, "pretrain", f"stages.pretrain.model.options.local_interaction={kind}", run=run)
    finished_run(root, "pretrain", "model.options.attention_pattern=[window, plain_window]", run="wsa")
    finished_run(root, "segment", run="segment")
    return root


def run(root, verb, *arguments):
    return analyse.run(parse("analyse", [verb, *map(str, arguments), "--root", str(root)]))


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_feature_maps_of_models_that_differ_in_their_attention(root, tmp_path, capsys):
    images = val_images(root, "pretrain")
    assert run(root, "features", "lim", "wsa", "--images", images, "--out", tmp_path) == 0
    note = read(tmp_path / "features.json")
    assert note["blocks"] == [2, 4, 8] and len(note["images"]) == 4
    assert note["models"] == {"lim": ["SSA"] * 3, "wsa": ["WSA"] * 3}
    assert set(note["recipes_differ_in"]) == {"model.options.attention_pattern", "model.options.local_interaction"}
    said = capsys.readouterr().out
    assert "4 of 12" in said and "not trained alike" not in said
    assert (tmp_path / "features.png").stat().st_size > 10_000


def test_models_of_any_task_are_shown_and_what_else_differs_is_said(root, tmp_path, capsys):
    assert run(root, "features", "segment", "--blocks", "1,10", "lim", "--out", tmp_path) == 0
    assert read(tmp_path / "features.json")["models"] == {"segment": ["IWSA", "SSA"], "lim": ["IWSA", "SSA"]}
    said = capsys.readouterr().out
    assert "not trained alike" in said and "task.kind" in said


def test_the_field_of_trained_layers(root, tmp_path, capsys):
    assert run(root, "field", "lim", "lem", *LARGE, "--out", tmp_path) == 0
    lim, lem = read(tmp_path / "field.json")["layers"]
    assert lim["share_outside_window"] > 0.01 and lem["share_outside_window"] == 0
    assert (lim["reached_least"], lim["reached_most"], lem["reached_most"], lim["map_tokens"]) == (49, 54, 49, 256)
    with (tmp_path / "field.csv").open(newline="") as lines:
        assert [float(row["radius_95_tokens"]) for row in csv.DictReader(lines)] == pytest.approx(
            [lim["radius_95_tokens"], lem["radius_95_tokens"]]
        )
    assert "IWSA, block 1 of lim" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["features", "lim", "--blocks", "2,11"], "lim has 10 blocks, no block 11"),
        (["features", "lim", "lim"], "named twice"),
        (["field", "lim", "model.options.local_interaction=lem"], "the network that the model's own recipe describes"),
        (["features", "nobody"], "no finished run 'nobody'"),
        (["field", "lim", "--block", "2"], r"block 2 of lim has no windows\n.*1, 3, 5, 7, 9"),
        (["field", "lim"], "a map of 8 x 8 tokens has less than 3 windows"),
        (["features", "lim", "--images", "nowhere"], "nowhere"),
        (["ablation", "--arms", "lim,none", "--stages", "pretrian"], "no stage 'pretrian'; did you mean 'pretrain'"),
    ],
)
def test_mistakes_are_named(root, tmp_path, arguments, said):
    verb, *rest = arguments
    with pytest.raises(UserError) as raised:
        run(root, verb, *rest, "--out", tmp_path)
    assert re.search(said, str(raised.value), re.DOTALL)
    assert not any(tmp_path.iterdir())


def test_nothing_is_written_over_what_is_there(root, tmp_path):
    kept = tmp_path / "costs.csv"
    kept.write_text("mine")
    with pytest.raises(UserError, match=r"holds costs\.csv already"):
        run(root, "table", "--out", tmp_path)
    for nowhere in (kept, kept / "below"):
        with pytest.raises(UserError, match=r"costs\.csv is no folder"):
            run(root, "table", "--out", nowhere)
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("verb", list(analyse.FILES))
def test_every_verb_has_help_worth_reading(verb, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("analyse", [verb, "--help"])
    said = capsys.readouterr().out
    assert "--root" in said and "Exit codes" in said and all(name in said for name in analyse.FILES[verb])


def test_overrides_may_stand_anywhere_and_other_words_nowhere(capsys):
    given = ["ablation", "a.b=1", "--arms", "lim,lem", "--seeds", "0,2", "c.d=2", "--out", "o", "e=3"]
    options = parse("analyse", given)
    assert (options.given, options.arms, options.seeds) == (["a.b=1", "c.d=2", "e=3"], ["lim", "lem"], [0, 2])
    for wrong in (["table", "more"], ["field", "--bock", "1"], ["ablation", "--arms", "lim,lim"],
                  ["ablation", "--seeds", "0,-1"]):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            parse("analyse", [*wrong, "--out", "o"])


def test_the_ablation_trains_the_arms_under_one_parent_and_sets_them_side_by_side(root, tmp_path, monkeypatch, capsys):
    trained = []

    def run_chain(recipe, stages, root):
        trained.extend((recipe.name, stage.name, stage.stage.model.options) for stage in stages)
        return [replace(RESULT, name=each.name, value=0.5 + 0.01 * n) for n, each in enumerate(stages)]

    monkeypatch.setattr(chain, "run_chain", run_chain)
    monkeypatch.setattr(cluster, "connect", lambda stages, root: None)
    tiny = RECIPES.parents[1] / "tests" / "end_to_end" / "tiny.yaml"
    wanted = ["--recipe", tiny, "--stages", "pretrain", "--arms", "lim,none", "--seeds", "0,1", "--out", tmp_path]
    assert run(root, "ablation", *wanted, "--dry-run") == 0
    assert not trained and not any(tmp_path.iterdir())
    assert run(root, "ablation", *wanted) == 0
    assert trained == [
        ("tiny-ablation", f"{arm}_pretrain_{seed}", {"local_interaction": arm})
        for seed in (0, 1)
        for arm in ("lim", "none")
    ]
    rows = read(tmp_path / "ablation.json")["rows"]
    assert [(row["arm"], row["seed"], row["best"]) for row in rows] == [
        ("lim", 0, 0.5), ("none", 0, 0.51), ("lim", 1, 0.52), ("none", 1, 0.53)
    ]  # fmt: skip
    # LIM's depth-wise 3 x 3 convolutions with bias, in the five IWSA blocks of the tiny model
    assert rows[0]["parameters"] - rows[1]["parameters"] == 10 * (24 + 48 + 2 * 96 + 160)
    said = capsys.readouterr().out
    assert "50.00, 52.00 (mean 51.00, deviation 1.41)" in said
    assert "lem 30 M, 174 GFLOPs, top-1 83.0, mIoU 41.1" in said


def test_stages_stand_beside_each_other_and_one_seed_is_called_one_seed():
    cost = Cost(1_620_000, 45_600_000, 50_000_000)
    segmented = replace(RESULT, metric="val/miou", value=0.411)
    outcomes = [
        ablation.arm_result(ArmStage(arm, stage, 0), cost, result)
        for arm in ("lim", "lem")
        for stage, result in (("pretrain", RESULT), ("segment", segmented))
    ]
    heading, _, *rows = ablation.format_results(outcomes).splitlines()
    columns = "arm pretrain: M GFLOPs with attention top1 % segment: M GFLOPs with attention miou %"
    assert heading.split() == columns.split()
    assert rows[0].split() == ["lim", "1.62", "0.0456", "0.05", "50.00", "1.62", "0.0456", "0.05", "41.10"]
    assert any(line.startswith("one seed:") for line in rows)


def test_the_table_counts_what_the_recipes_build(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(costs, "HEADS", {head: costs.HEADS[head] for head in ("classifier", "semantic_fpn")})
    monkeypatch.setattr(costs, "BACKBONES", costs.BACKBONES[:1])
    assert run(root, "table", "--out", tmp_path) == 0
    rows = read(tmp_path / "costs.json")["rows"]
    assert [(row["head"], row["backbone"], row["size"]) for row in rows] == [
        ("classifier", "S", "224 x 224"), ("semantic_fpn", "S", "512 x 2048")
    ]  # fmt: skip
    for row in rows:
        assert abs(row["parameters_deviation"]) < 0.2 and abs(row["gflops_deviation"]) < 1.5
    assert "32.38    32.4" in capsys.readouterr().out


def test_every_backbone_of_the_paper_has_its_recipe():
    for beginning, _ in costs.HEADS.values():
        for _, name, overrides in costs.BACKBONES:
            assert len(load_recipe(RECIPES / f"{beginning}_{name}.yaml", overrides).stages) == 1
