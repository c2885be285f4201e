"""The stages of an ablation: those of a recipe, copied for each variant of the attention, all else equal."""

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
"""By arm (a variant of the attention): what it changes in `model.options`. `lim` is the standard model; `lem` is the
other arm of the paper's Table 1; `none` has plain window attention (WSA) in place of IWSA, `wsa_for_ssa` in place of
SSA (the paper's Figure 2)."""


@dataclass(frozen=True)
class ArmStage:
    """One stage of the base recipe, trained with one arm's attention and one seed."""

    arm: str
    """Key of `ARMS`."""
    stage: str
    """Name of the stage in the base recipe."""
    seed: int
    """Training seed."""

    @property
    def name(self) -> str:
        """Return the stage's name in the recipe of the ablation: `<arm>_<stage>_<seed>`."""
        return f"{self.arm}_{self.stage}_{self.seed}"


def plan_arms(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int] = ()) -> list[ArmStage]:
    """Return every stage of the recipe for each seed and arm.

    Args:
        recipe: the base recipe.
        arms: keys of `ARMS`.
        seeds: each arm is trained once with each of them; empty: once, with the recipe's own seeds.
    """
    chosen: Sequence[int | None] = seeds or [None]
    return [
        ArmStage(arm, name, stage.training.seed if seed is None else seed)
        for seed in chosen
        for arm in arms
        for name, stage in recipe.stages.items()
    ]


def ablation_recipe(recipe: Recipe, arms: Sequence[str], seeds: Sequence[int] = ()) -> Recipe:
    """Return one recipe with the stages of `plan_arms`; each starts from the earlier stage of its own arm and seed.

    No stage has a name to register its model under (`tracking.register_as`), and there is no search.

    Args:
        recipe: the base recipe.
        arms: keys of `ARMS`.
        seeds: as for `plan_arms`.

    Raises:
        UserError: an arm is unknown; or a stage is no ScalableViT, or starts from weights outside the recipe, which
            were trained with one arm's attention.
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
    """Return the plain values of one arm's stage."""
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
