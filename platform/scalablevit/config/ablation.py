"""Arms of an ablation: a recipe's stages over again, alike in all but the attention of their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from scalablevit.config.checking import check, did_you_mean
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.config.section import OptionValue, PlainValues

ARMS: dict[str, dict[str, OptionValue]] = {
    "lim": {"local_interaction": "lim"},
    "lem": {"local_interaction": "lem"},
    "none": {"local_interaction": "none"},
    "wsa_for_ssa": {"local_interaction": "lim", "attention_pattern": ["window", "plain_window"]},
}
"""What each arm changes in `model.options`. The standard model is `lim`; `lem` is the other arm of the paper's Table 1;
`none` leaves plain windows (WSA) where IWSA was, `wsa_for_ssa` where SSA was (the paper's Figure 2)."""


@dataclass(frozen=True)
class ArmStage:
    """One stage of the base recipe, trained with one arm's attention and one seed."""

    arm: str
    stage: str
    seed: int

    @property
    def name(self) -> str:
        """Of its stage in the recipe of all arms."""
        return f"{self.arm}_{self.stage}_{self.seed}"


def plan_arms(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int] = ()) -> list[ArmStage]:
    """Every stage of the recipe for each seed and arm.

    Args:
        recipe: the base.
        arms: names in `ARMS`.
        seeds: every arm is trained with each; none: with the recipe's own.
    """
    chosen: Sequence[int | None] = seeds or [None]
    return [
        ArmStage(arm, name, stage.training.seed if seed is None else seed)
        for seed in chosen
        for arm in arms
        for name, stage in recipe.stages.items()
    ]


def ablation_recipe(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int] = ()) -> Recipe:
    """One recipe with the stages of `plan`; a stage starts from the earlier one of its own arm and seed.

    Each arm registers its models under names of its own, and nothing is searched.

    Raises:
        UserError: an unknown arm; a stage that is no ScalableViT, or starts from weights outside the recipe, which were
            trained with one arm's attention.
    """
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"no arm {arm!r}{did_you_mean(arm, ARMS)}", where="--arms", fix=f"arms: {', '.join(ARMS)}")
    for name, stage in recipe.stages.items():
        _check_base(name, stage)
    planned = plan_arms(recipe, arms, seeds)
    whole = {
        "name": f"{recipe.name}-ablation",
        "stages": {arm_stage.name: _stage_of(recipe, arm_stage, seeds) for arm_stage in planned},
    }
    return check(Recipe, whole, {}, f"ablation of {recipe.name}")


def _check_base(name: str, stage: Stage) -> None:
    if not (stage.model.init or "stage:").startswith("stage:"):
        raise UserError(
            f"starts from {stage.model.init}, weights that were trained with one arm's attention",
            where=f"stage {name}: model.init",
            fix="put the stage that trains them into the recipe and write stage:<name>, or override it with null",
        )
    if not stage.model.name.startswith("scalablevit_"):
        raise UserError(f"{stage.model.name} has neither IWSA nor SSA", where=f"stage {name}: model.name",
                        fix="choose a ScalableViT")  # fmt: skip


def _stage_of(recipe: Recipe, arm: ArmStage, seeds: Sequence[int]) -> PlainValues:
    """Plain values of one arm's stage."""
    stage = recipe.stages[arm.stage]
    values: PlainValues = stage.model_dump(mode="json")
    values["model"]["options"] |= ARMS[arm.arm]
    values["training"]["seed"] = arm.seed
    values["tracking"]["register_as"] = None
    if stage.model.init is not None:
        parent = stage.model.init.removeprefix("stage:")
        seed = arm.seed if seeds else recipe.stages[parent].training.seed
        values["model"]["init"] = f"stage:{ArmStage(arm.arm, parent, seed).name}"
    return values
