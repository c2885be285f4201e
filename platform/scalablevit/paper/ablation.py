"""The paper's Table 1 for any recipe: an ablation whose arms are trained alike under one parent run."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.ablation import ARMS, ArmStage, ablation_recipe, plan_arms
from scalablevit.config.checking import did_you_mean
from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Recipe
from scalablevit.paper.saving import save_note, save_rows
from scalablevit.pipeline.resolve import DRY_RUN_S, ResolvedStage, resolve
from scalablevit.runs.result import StageResult
from scalablevit.text import format_table

if TYPE_CHECKING:
    from scalablevit.models.counting import Cost

PAPER = {
    "lim": {"parameters_m": 30, "gflops": 174, "top1": 83.1, "miou": 44.9},
    "lem": {"parameters_m": 30, "gflops": 174, "top1": 83.0, "miou": 41.1},
}
"""Table 1 of the paper's supplement: ScalableViT-S, top-1 on ImageNet-1K and mIoU of Semantic FPN on ADE20K, both in
percent. Parameters (millions) and FLOPs (10^9, at 512 x 2048) are those of the Semantic FPN."""


@dataclass(frozen=True)
class ArmResult:
    """The result of one arm's stage."""

    arm: str
    stage: str
    seed: int
    run: str
    parameters: int
    macs: int
    macs_with_attention: int
    metric: str
    """Name, without `val/`."""
    best: float
    """Value of the best evaluation, as a fraction."""
    step: int
    """Step of the best evaluation."""
    last: float | None
    """Value of the last evaluation; None: not a number."""


def run_ablation(
    recipe: Recipe,
    arms: Sequence[str],
    seeds: Sequence[int],
    wanted: Sequence[str],
    out: Path,
    root: Path,
    *,
    dry_run: bool,
) -> None:
    """Train every arm, print a table of the results and write it to `out`; the same call again resumes.

    Args:
        recipe: the base.
        arms: names in `config.ablation.ARMS`.
        seeds: each arm is trained with all of them; empty: with the recipe's own.
        wanted: stages of the base to train, with the stages that they start from; empty: all.
        out: folder for `ablation.csv` and `ablation.json`.
        root: the platform's root.
        dry_run: print what would be trained, and start nothing.

    Raises:
        UserError: there is no such stage, or as training.
    """
    for name in wanted:
        if name not in recipe.stages:
            raise UserError(f"no stage {name!r}{did_you_mean(name, recipe.stages)}", where="--stages",
                            fix=f"stages: {', '.join(recipe.stages)}")  # fmt: skip
    whole = ablation_recipe(recipe, arms, seeds)
    if recipe.tune is not None:
        print(f"not searched: every arm trains with the recipe's own values, not with what {recipe.tune} would find")
    planned = {arm.name: arm for arm in plan_arms(recipe, arms, seeds)}
    chosen = [name for name, arm in planned.items() if not wanted or arm.stage in wanted]
    stages = resolve(whole, root, chosen, DRY_RUN_S if dry_run else None)
    from scalablevit.pipeline.plan_summary import print_plan

    print_plan(whole.name, stages, root)
    if dry_run:
        print("\ndry run: nothing was started")
        return
    print(flush=True)
    from scalablevit.pipeline import chain, cluster
    from scalablevit.tracking.notifications import sending_notifications

    cluster.connect(stages, root)
    costs = {stage.name: _cost(stage) for stage in stages}
    with sending_notifications(root, whole.stages.values()):
        finished = chain.run_chain(whole, stages, root)
    results = [arm_result(planned[stage.name], costs[stage.name], stage) for stage in finished]
    print("\n" + format_results(results), flush=True)
    rows = [asdict(result) for result in results]
    save_rows(rows, out / "ablation.csv")
    options = {arm: ARMS[arm] for arm in arms}
    save_note({"recipe": recipe.name, "arms": options, "rows": rows, "paper": PAPER}, out / "ablation.json")


def _cost(resolved: ResolvedStage) -> "Cost":
    from scalablevit.tasks.registry import task_kind

    return task_kind(resolved.stage.task.kind).build_costs(resolved.stage, resolved.classes).count()


def arm_result(arm: ArmStage, cost: "Cost", result: StageResult) -> ArmResult:
    """Return the result of an arm's finished stage, with its cost."""
    return ArmResult(
        arm=arm.arm,
        stage=arm.stage,
        seed=arm.seed,
        run=result.run_name,
        parameters=cost.parameters,
        macs=cost.macs,
        macs_with_attention=cost.macs_with_attention,
        metric=result.metric.removeprefix("val/"),
        best=result.value,
        step=result.step,
        last=result.last_value,
    )


def format_results(results: Sequence[ArmResult]) -> str:
    """Return a table as text, a row for each arm: parameters, FLOPs and best metrics of each stage."""
    arms = list(dict.fromkeys(result.arm for result in results))
    stages = list(dict.fromkeys(result.stage for result in results))
    by_arm_and_stage = {
        (arm, stage): [result for result in results if (result.arm, result.stage) == (arm, stage)]
        for arm in arms
        for stage in stages
    }
    heading = ["arm"]
    for stage in stages:
        metric = by_arm_and_stage[arms[0], stage][0].metric
        heading += [f"{stage}: M", "GFLOPs", "with attention", f"{metric} %"]
    rows = [[arm, *(cell for stage in stages for cell in _cells(by_arm_and_stage[arm, stage]))] for arm in arms]
    of_first_arm = {stage: by_arm_and_stage[arms[0], stage] for stage in stages}
    return "\n".join([format_table([heading, *rows]), "", *_notes(of_first_arm)])


def _cells(by_seed: Sequence[ArmResult]) -> list[str]:
    """Return the cells of one arm's stage, trained with one or several seeds."""
    first = by_seed[0]
    metrics = [100 * result.best for result in by_seed]
    text = ", ".join(f"{metric:.2f}" for metric in metrics)
    if len(metrics) > 1:
        text += f" (mean {statistics.mean(metrics):.2f}, deviation {statistics.stdev(metrics):.2f})"
    return [f"{first.parameters / 1e6:.2f}", f"{first.macs / 1e9:.3g}", f"{first.macs_with_attention / 1e9:.3g}", text]


def _notes(by_stage: Mapping[str, Sequence[ArmResult]]) -> list[str]:
    seeds = "; ".join(
        f"{stage} {', '.join(str(result.seed) for result in by_seed)}" for stage, by_seed in by_stage.items()
    )
    notes = [f"best evaluation of each run; seeds, the same for all arms: {seeds}"]
    if all(len(by_seed) == 1 for by_seed in by_stage.values()):
        notes.append(
            "one seed: what differs by as little as one arm does from seed to seed says nothing; --seeds 0,1,2"
        )
    paper = "; ".join(
        f"{arm} {row['parameters_m']} M, {row['gflops']} GFLOPs, top-1 {row['top1']}, mIoU {row['miou']}"
        for arm, row in PAPER.items()
    )
    notes.append(f"the paper's Table 1 (ScalableViT-S, ImageNet-1K, Semantic FPN on ADE20K at 512 x 2048): {paper}")
    return notes
