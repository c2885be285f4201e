"""The plan of a training as a JSON document."""

from collections.abc import Sequence
from pathlib import Path

from scalablevit.cli.documents import PlannedStage, TrainingPlan
from scalablevit.config.unused_keys import drop_unused
from scalablevit.pipeline.plan_summary import starts_from
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.runs.result import without_secrets
from scalablevit.runs.run_store import RunStore


def training_plan(recipe: str, stages: Sequence[ResolvedStage], root: Path) -> TrainingPlan:
    """Return the document about the stages of a recipe.

    Args:
        recipe: name of the recipe.
        stages: in the order of running.
        root: the platform's root.
    """
    return TrainingPlan(recipe=recipe, stages=tuple(_planned_stage(stage, root) for stage in stages))


def _planned_stage(resolved: ResolvedStage, root: Path) -> PlannedStage:
    stage = resolved.stage
    return PlannedStage(
        name=resolved.name,
        run=resolved.run_name,
        folder=RunStore.at(resolved.run_name, stage.cluster.storage, root).location,
        task=stage.task.kind,
        model=stage.model.name,
        starts_from=starts_from(resolved),
        train_samples=resolved.train_samples,
        val_samples=resolved.val_samples,
        classes=resolved.classes,
        data_digest=resolved.digest,
        steps=resolved.length.total,
        evaluate_every_steps=resolved.length.evaluate_every,
        workers=stage.cluster.workers,
        warnings=resolved.warnings,
        recipe=drop_unused(without_secrets(stage).model_dump(mode="json")),
    )
