"""Arms of an ablation differ in their attention and in nothing else."""

from pathlib import Path

import pytest

from scalablevit.config.ablation import ARMS, ablation_recipe, plan_arms
from scalablevit.config.errors import UserError
from scalablevit.config.loading import load_recipe

RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
DEMO = RECIPES / "demo.yaml"


def test_every_arm_starts_from_its_own_stages_and_differs_in_nothing_but_its_attention():
    base = load_recipe(DEMO, ["model.options={feature_norms: true}", "tracking.register_as=mine"])
    made = ablation_recipe(base, list(ARMS), [3, 4])
    assert made.name == "demo-ablation" and len(made.stages) == len(ARMS) * 2 * len(base.stages)
    for each in plan_arms(base, list(ARMS), [3, 4]):
        stage, of_base = made.stages[each.name], base.stages[each.stage]
        parent = of_base.model.init and f"stage:{each.arm}_pretrain_{each.seed}"
        assert stage.model.init == parent
        assert stage.model.options == {"feature_norms": True, **ARMS[each.arm]}
        assert stage.training.seed == each.seed
        # under one name, the last arm to finish would be the candidate
        assert stage.tracking.register_as is None
        as_base = {
            "model": stage.model.model_copy(update={"init": of_base.model.init, "options": of_base.model.options}),
            "training": stage.training.model_copy(update={"seed": of_base.training.seed}),
            "tracking": of_base.tracking,
        }
        assert stage.model_copy(update=as_base) == of_base


def test_without_seeds_the_recipes_own_are_kept():
    base = load_recipe(DEMO, ["stages.pretrain.training.seed=7", "stages.segment.training.seed=8"])
    made = ablation_recipe(base, ["lim", "lem"])
    assert list(made.stages)[:2] == ["lim_pretrain_7", "lim_segment_8"]
    assert made.stages["lem_segment_8"].model.init == "stage:lem_pretrain_7"


@pytest.mark.parametrize(
    ("overrides", "arms", "said"),
    [
        ([], ["lim", "len"], "no arm 'len'; did you mean"),
        (["stages.segment.model.init=models:/demo-pretrain@candidate"], ["lim"], "trained with one arm's attention"),
        (["model.name=resnet18"], ["lim"], "resnet18 has neither IWSA nor SSA"),
    ],
)
def test_what_makes_no_fair_comparison_is_refused(overrides, arms, said):
    with pytest.raises(UserError, match=said):
        ablation_recipe(load_recipe(DEMO, overrides), arms)


def test_the_papers_ablation_has_the_stages_of_the_papers_recipes():
    stages = load_recipe(RECIPES / "ablation_scalablevit_small.yaml").stages
    imagenet = load_recipe(RECIPES / "imagenet_scalablevit_small.yaml").stages["pretrain"]
    ade20k = load_recipe(RECIPES / "ade20k_semantic_fpn_scalablevit_small.yaml").stages["segment"]
    from_first = ade20k.model.model_copy(update={"init": "stage:pretrain"})
    assert stages == {"pretrain": imagenet, "segment": ade20k.model_copy(update={"model": from_first})}
