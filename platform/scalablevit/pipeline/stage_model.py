"""Build a stage's model before anything is started: what it costs, and whether its batch norm gets enough images."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from scalablevit.config.errors import UserError, in_stage
from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import task_info
from scalablevit.models.compilation import repeated_blocks
from scalablevit.models.counting import count_cost
from scalablevit.tasks.registry import build_task, task_kind
from scalablevit.tasks.task import Task


def check_micro_batches(name: str, stage: Stage, classes: tuple[str, ...]) -> None:
    """Refuse micro-batches of one image for a model whose batch norm takes its statistics from them.

    Some kinds of task refuse such micro-batches themselves (`TaskInfo.checks_micro_batches`).

    Args:
        name: name of the stage.
        stage: the stage.
        classes: of its data.

    Raises:
        UserError: with the smallest batch that would do.
    """
    try:
        task_kind(stage.task.kind).check_training(stage)
    except UserError as error:
        raise in_stage(name, error) from None
    training, cluster = stage.training, stage.cluster
    parts = cluster.workers * training.accumulation_steps
    synchronized = cluster.gpus_per_worker > 0 and (cluster.min_workers or cluster.workers) > 1
    checked = task_info(stage.task.kind).checks_micro_batches
    if checked or synchronized or training.global_batch_size >= 2 * parts:
        return
    with torch.device("meta"):
        model = build_task(stage, classes).build_model()
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        raise UserError(
            f"{training.global_batch_size} images over {cluster.workers} workers and {training.accumulation_steps} "
            f"micro-batches leave some with one image, of which the batch norm of {stage.model.name} has no statistics",
            where=f"stage {name}: training.global_batch_size",
            fix=f"at least {2 * parts}, fewer workers or accumulation steps, or a model with another norm",
        )


def model_cost(name: str, stage: Stage, classes: tuple[str, ...]) -> str:
    """Return one line on a model: parameters and multiply-accumulates, next to the paper's.

    Args:
        name: name of the stage, for errors.
        stage: the stage.
        classes: of its data.

    Raises:
        UserError: the model cannot be built, or its blocks not compiled, as the recipe says.
    """
    torch.manual_seed(0)
    with _model_errors(name, stage):
        task = build_task(stage, classes)
        compiled = _describe_compiled_blocks(task, stage.model.name) if stage.training.compile == "blocks" else ""
        described = task_kind(stage.task.kind).build_costs(stage, classes).describe() + compiled
    for phase in stage.training.image_size_schedule:
        with _model_errors(name, stage, f"{phase.size} pixels (training.image_size_schedule)"), torch.device("meta"):
            count_cost(task.build_model(), (1, 3, phase.size, phase.size))
    return described


def backbone_macs_per_pixel(name: str, stage: Stage, classes: tuple[str, ...]) -> float:
    """Return the multiply-accumulates of a backbone's forward pass, divided by its pixels.

    Args:
        name: name of the stage, for errors.
        stage: the stage.
        classes: of its data.

    Raises:
        UserError: as `model_cost`.
    """
    with _model_errors(name, stage):
        height, width = task_kind(stage.task.kind).build_costs(stage, classes).size
        task = build_task(stage, classes)
        with torch.device("meta"):
            backbone = task.backbone(task.build_model())
        return count_cost(backbone, (1, 3, height, width)).macs / (height * width)


@contextmanager
def _model_errors(name: str, stage: Stage, size: str = "the evaluation size") -> Iterator[None]:
    """Turn what building or running a stage's model raises into an error for people."""
    try:
        yield
    except UserError as error:
        raise in_stage(name, error) from None
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{stage.model.name} does not run at {size}: {str(error).splitlines()[0]}",
            where=f"stage {name}: model.name, model.options, data",
            fix="choose another image size, or give the architecture its size by model.options",
        ) from None


def _describe_compiled_blocks(task: Task, name: str) -> str:
    """Return which blocks of an architecture `training.compile` compiles, in words."""
    with torch.device("meta"):
        blocks = repeated_blocks(task.backbone(task.build_model()), name)
    return f"; compiled: {len(blocks)} x {type(blocks[0]).__name__}"
