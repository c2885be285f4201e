"""The paper's Table 1 on any recipe: arms trained alike under one parent run, their metrics side by side."""

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
"""The paper's supplement, Table 1: ScalableViT-S, top-1 on ImageNet-1K in percent, mIoU of Semantic FPN on ADE20K in
percent, whose parameters and FLOPs (at 512 x 2048) they are."""


@dataclass(frozen=True)
class ArmResult:
    """What became of one arm's stage."""

    arm: str
    stage: str
    seed: int
    run: str
    parameters: int
    macs: int
    macs_with_attention: int
    metric: str
    best: float
    step: int
    """Of the best evaluation."""
    last: float | None
    """Of the last evaluation; None: not a number."""


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
    """Train every arm, print their table and write it to `out`; the same call again continues.

    Args:
        recipe: the base.
        arms: names in `config.ablation.ARMS`.
        seeds: each arm is trained with all of them; none: with the recipe's own.
        wanted: stages of the base, with those that they start from; none: all.
        out: folder for `ablation.csv` and `ablation.json`.
        root: the platform's root.
        dry_run: say what would be trained, and start nothing.
    """
    for name in wanted:
        if name not in recipe.stages:
            raise UserError(f"no stage {name!r}{did_you_mean(name, recipe.stages)}", where="--stages",
                            fix=f"stages: {', '.join(recipe.stages)}")  # fmt: skip
    whole = ablation_recipe(recipe, arms, seeds)
    if recipe.tune is not None:
        print(f"not searched: every arm trains with the recipe's own values, not with what {recipe.tune} would find")
    planned = {each.name: each for each in plan_arms(recipe, arms, seeds)}
    chosen = [name for name, each in planned.items() if not wanted or each.stage in wanted]
    stages = resolve(whole, root, chosen, DRY_RUN_S if dry_run else None)
    from scalablevit.pipeline.plan_summary import print_plan

    print_plan(whole.name, stages, root)
    if dry_run:
        print("\ndry run: nothing was started")
        return
    print(flush=True)
    from scalablevit.pipeline import chain, cluster

    cluster.connect(stages, root)
    costs = {stage.name: _cost(stage) for stage in stages}
    results = [arm_result(planned[each.name], costs[each.name], each) for each in chain.run_chain(whole, stages, root)]
    print("\n" + format_results(results), flush=True)
    rows = [asdict(each) for each in results]
    save_rows(rows, out / "ablation.csv")
    options = {arm: ARMS[arm] for arm in arms}
    save_note({"recipe": recipe.name, "arms": options, "rows": rows, "paper": PAPER}, out / "ablation.json")


def _cost(resolved: ResolvedStage) -> "Cost":
    from scalablevit.tasks.registry import task_kind

    return task_kind(resolved.stage.task.kind).build_costs(resolved.stage, resolved.classes).count()


def arm_result(arm: ArmStage, cost: "Cost", result: StageResult) -> ArmResult:
    """An arm's stage that has finished."""
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
    """A line for each arm: parameters, FLOPs and best metrics of each stage."""
    arms = list(dict.fromkeys(each.arm for each in results))
    stages = list(dict.fromkeys(each.stage for each in results))
    of = {(arm, stage): [each for each in results if (each.arm, each.stage) == (arm, stage)]
          for arm in arms for stage in stages}  # fmt: skip
    heading = ["arm"]
    for stage in stages:
        heading += [f"{stage}: M", "GFLOPs", "with attention", f"{of[arms[0], stage][0].metric} %"]
    rows = [[arm, *(cell for stage in stages for cell in _cells(of[arm, stage]))] for arm in arms]
    return "\n".join([format_table([heading, *rows]), "", *_notes({stage: of[arms[0], stage] for stage in stages})])


def _cells(trained: Sequence[ArmResult]) -> list[str]:
    """One arm's stage, trained with one or several seeds."""
    first = trained[0]
    metrics = [100 * each.best for each in trained]
    said = ", ".join(f"{metric:.2f}" for metric in metrics)
    if len(metrics) > 1:
        said += f" (mean {statistics.mean(metrics):.2f}, deviation {statistics.stdev(metrics):.2f})"
    return [f"{first.parameters / 1e6:.2f}", f"{first.macs / 1e9:.3g}", f"{first.macs_with_attention / 1e9:.3g}", said]


def _notes(by_stage: Mapping[str, Sequence[ArmResult]]) -> list[str]:
    seeds = "; ".join(f"{stage} {', '.join(str(each.seed) for each in trained)}" for stage, trained in by_stage.items())
    notes = [f"best evaluation of each run; seeds, the same for all arms: {seeds}"]
    if all(len(trained) == 1 for trained in by_stage.values()):
        notes.append(
            "one seed: what differs by as little as one arm does from seed to seed says nothing; --seeds 0,1,2"
        )
    paper = "; ".join(
        f"{arm} {row['parameters_m']} M, {row['gflops']} GFLOPs, top-1 {row['top1']}, mIoU {row['miou']}"
        for arm, row in PAPER.items()
    )
    notes.append(f"the paper's Table 1 (ScalableViT-S, ImageNet-1K, Semantic FPN on ADE20K at 512 x 2048): {paper}")
    return notes
