"""Check a recipe against its data and models, before anything is started, and work out all that these decide."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scalablevit.config.commands import command_name
from scalablevit.config.data import (
    SPLITS,
    CocoInstances,
    DataSection,
    LabelledImages,
    MaskPairs,
    SplitName,
    default_resize,
)
from scalablevit.config.errors import UserError, UserErrors, in_stage, raise_all
from scalablevit.config.model_names import check_model_name, known_models
from scalablevit.config.overrides import with_parents
from scalablevit.config.promotion import TOP5_CLASSES
from scalablevit.config.recipe import Length, Recipe, Stage
from scalablevit.config.root import tracking_uri
from scalablevit.config.run_hash import stage_hash
from scalablevit.config.schedule import largest_rate, learning_rate
from scalablevit.config.space import Search
from scalablevit.config.task_info import kind_of_script, task_info
from scalablevit.config.user_code import import_user_code
from scalablevit.data.coco import SIZES
from scalablevit.data.contents import ContentCache
from scalablevit.data.shapes import write_shapes
from scalablevit.data.sources.base import Source
from scalablevit.data.sources.files import describe_skipped
from scalablevit.data.sources.opening import open_source
from scalablevit.inspection.check import check_split, image_notes, raise_if_fatal
from scalablevit.inspection.inspect_data import Inspection, inspect_data, inspect_validation
from scalablevit.inspection.statistics import DataStatistics
from scalablevit.pipeline.init_weights import (
    InitWeights,
    check_init_weights,
    check_parent_fit,
    find_init_weights,
    init_warnings,
)
from scalablevit.tasks.registry import task_kind
from scalablevit.tracking.connection import check_uri
from scalablevit.tracking.notify_settings import load_settings

UNKNOWN = "unknown"
"""In a dry run: the digest of data that could not all be hashed in its time, and the hash of a run on such data."""
DRY_RUN_S = 10.0
"""Most seconds that a dry run spends on the data of all stages."""
MIN_CROP = 0.8
"""Least side of the evaluation's crop, as a share of the image's short side, without a warning; 0.875 is usual."""
MIN_FILLED = 0.75
"""Least short side of an image, as a share of a crop's side or of another short side, without a warning."""


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with everything that its data decides."""

    name: str
    """Name in the recipe."""
    stage: Stage
    run_name: str
    """Name of its run and of the run's folder: `<recipe>-<stage>-<hash>`."""
    hash: str
    """Twelve hexadecimal digits (`config.run_hash.stage_hash`), or `UNKNOWN`."""
    digest: str
    """Digest of the data of both splits; in evaluation without a training split, of the validation split."""
    classes: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    train_samples: int
    """Samples of the training split."""
    val_samples: int
    """Samples of the validation split."""
    unreadable: int
    """Samples that cannot be decoded, which training skips."""
    ignored: tuple[str, ...]
    """Files next to the images that are no images by their names, or not annotated."""
    notes: tuple[str, ...]
    """What was changed when the data was read, such as cleaned annotations."""
    absent_sizes: tuple[str, ...] = field(default=(), kw_only=True)
    """COCO's sizes that no annotated object of the validation split has."""
    statistics: DataStatistics | None = field(default=None, kw_only=True)
    """Statistics of both splits; None in evaluation."""
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    """What is wrong with data and initial weights but does not stop the training."""
    length: Length
    parents: tuple[str, ...] = field(default=())
    """Names of the stages whose weights it starts from."""
    sources: Mapping[SplitName, Source] = field(default_factory=dict, compare=False, repr=False)
    """The splits, as they were listed."""
    init_weights: InitWeights | None = None
    """Weights from outside the recipe that it starts from."""


def resolve(
    recipe: Recipe, root: Path, wanted: Sequence[str] | None = None, seconds: float | None = None
) -> list[ResolvedStage]:
    """Open and check the data of the wanted stages and of those they start from, in the recipe's order.

    Args:
        recipe: the checked recipe.
        root: the platform's root.
        wanted: stage names; None: all.
        seconds: most seconds spent on the data of all stages together (`DRY_RUN_S` in a dry run); `statistics` then has
            what is not known. None: no limit.

    Raises:
        UserError: one mistake in data, weights or model names.
        UserErrors: several, over all stages.
    """
    inits = {name: stage.model.init for name, stage in recipe.stages.items()}
    needed = with_parents(recipe.stages if wanted is None else wanted, inits)
    errors: list[UserError] = []
    resolved: dict[str, ResolvedStage] = {}
    inspections: dict[str, Inspection] = {}
    for name in needed:
        try:
            stage = recipe.stages[name]
            init_weights = _find_weights(stage, root)
            threads = min(16, 4 * (os.cpu_count() or 1))
            key = stage.data.model_dump_json()  # stages on the same data share its inspection
            if key not in inspections:
                inspection = inspect_data(stage.data, root, threads, cache=root / "cache" / "checks", seconds=seconds)
                inspections[key] = inspection
                seconds = None if seconds is None else max(0.0, seconds - inspection.seconds)
            inspection = inspections[key]
            resolved[name] = _resolve_stage(recipe, name, resolved, init_weights, inspection, root)
        except UserErrors as several:
            errors += [in_stage(name, error) for error in several.errors]
        except UserError as error:
            errors.append(in_stage(name, error))
    raise_all(errors)
    return list(resolved.values())


def check_metric(search: Search, searched: ResolvedStage) -> None:
    """Refuse to search by a metric that the stage does not report on its data.

    Args:
        search: the space with its base recipe.
        searched: its stage.

    Raises:
        UserError: it is top-5 accuracy of five classes or fewer, or of objects of a size that validation has none of.
    """
    metric, where = search.space.metric, f"space {search.name}: metric"
    if metric == "val/top5":
        _refuse_top5(searched.classes, where, "metric: val/top1")
    kind, _, size = metric.rpartition("_")
    if size in searched.absent_sizes:
        low, high = SIZES[size]
        raise UserError(
            f"{metric} is never reported: no annotated object of the validation split is {size} "
            f"({low} to {high} pixels of area)",
            where=where,
            fix=f"write metric: {kind}",
        )


def wanted_stages(recipe: Recipe, script: str) -> list[str] | None:
    """Return the names of the stages that a script runs; None for `full`, which runs all.

    Args:
        recipe: the recipe.
        script: verb of the script, such as `pretrain`.

    Raises:
        UserError: the recipe has no stage of the script's kind.
    """
    kind = kind_of_script(script)
    if kind is None:
        return None
    names = [name for name, stage in recipe.stages.items() if stage.task.kind == kind]
    if not names:
        kinds = ", ".join(f"{name} ({stage.task.kind})" for name, stage in recipe.stages.items())
        raise UserError(
            f"recipe {recipe.name} has no {kind} stage; it has {kinds}",
            where="--recipe",
            fix=f"choose another recipe, or run {command_name('full')}",
        )
    return names


def _parents(stage: Stage) -> tuple[str, ...]:
    init = stage.model.init or ""
    return (init.removeprefix("stage:"),) if init.startswith("stage:") else ()


def _find_weights(stage: Stage, root: Path) -> InitWeights | None:
    """Check the stage's architecture, MLflow's address and whom to notify, and find its initial weights.

    Raises:
        UserError: one of them is of no use, or as `import_user_code`.
    """
    import_user_code(stage.imports)
    dense = task_info(stage.task.kind).needs_pyramid
    check_model_name(stage.model.name, dense=dense, registered=bool(stage.imports))
    if stage.model.name not in known_models():
        from scalablevit.models.backbone import check_architecture

        check_architecture(stage.model.name)
    check_uri(tracking_uri(stage.tracking.uri, root))
    if stage.tracking.notify:
        load_settings()
    return find_init_weights(stage, root)


def _resolve_stage(
    recipe: Recipe,
    name: str,
    earlier: dict[str, ResolvedStage],
    init_weights: InitWeights | None,
    inspection: Inspection,
    root: Path,
) -> ResolvedStage:
    stage = recipe.stages[name]
    inspection.raise_errors()
    sources = inspection.sources
    if stage.promotion.metric == "top5":
        _refuse_top5(sources["train"].classes, "promotion.metric", "promotion.metric=top1")
    if init_weights is not None:
        check_init_weights(stage, init_weights, sources["train"].classes, root)
    known = all(source.contents is not None for source in sources.values())
    digests = [sources[split].digest() if known else UNKNOWN for split in SPLITS]
    digest = hashlib.sha256(" ".join(digests).encode()).hexdigest() if known else UNKNOWN
    parents = tuple(parent for parent in _parents(stage) if parent in earlier)
    for parent in parents:
        check_parent_fit(stage, sources["train"].classes, earlier[parent].stage, earlier[parent].classes, root)
    origins = [earlier[parent].hash for parent in parents] + ([init_weights.sha256] if init_weights else [])
    own_hash = stage_hash(stage, digest, origins) if known and UNKNOWN not in origins else UNKNOWN
    return ResolvedStage(
        name=name,
        stage=stage,
        run_name=f"{recipe.name}-{name}-{own_hash}",
        hash=own_hash,
        digest=f"content:{digest}",
        classes=sources["train"].classes,
        train_samples=len(sources["train"]),
        val_samples=len(sources["val"]),
        unreadable=sum(len(report.unreadable) for report in inspection.reports.values()),
        ignored=tuple(name for source in sources.values() for name in source.ignored),
        statistics=inspection.statistics,
        warnings=(
            *inspection.warnings,
            *_stage_warnings(stage, inspection),
            *init_warnings(stage, init_weights, earlier[parents[0]].stage if parents else None),
        ),
        absent_sizes=sources["val"].annotations.absent_sizes() if sources["val"].annotations else (),
        notes=tuple(f"{split}: {note}" for split, source in sources.items() for note in source.notes),
        length=compute_length(stage, len(sources["train"])),
        parents=parents,
        sources=sources,
        init_weights=init_weights,
    )


def _stage_warnings(stage: Stage, inspection: Inspection) -> tuple[str, ...]:
    """Warn of what does not fit the data."""
    statistics = inspection.statistics
    of_task = () if statistics is None else task_kind(stage.task.kind).data_warnings(stage, statistics)
    return (*of_task, *size_warnings(stage.data))


def size_warnings(data: DataSection) -> tuple[str, ...]:
    """Return a warning where crops and sizes do not fit together, as where only one of them was overridden.

    That is: evaluation sees little of an image, or other sizes than training, or much of a training crop is padding.
    """
    if isinstance(data, MaskPairs):
        side = round(data.short_side * data.scale_range[1])
        return () if side >= MIN_FILLED * data.crop_size else (
            f"training crops of {data.crop_size} x {data.crop_size} pixels (data.crop_size) are taken from images "
            f"whose short side has at most {side} (data.short_side, data.scale_range): at least "
            f"{100 * (1 - side / data.crop_size):.2g} % of each is padding; data.crop_size={side} has none",
        )  # fmt: skip
    if isinstance(data, CocoInstances):
        low, high = data.train_short_sides or (data.short_side, data.short_side)
        return () if MIN_FILLED * low <= data.short_side <= high / MIN_FILLED else (
            f"training scales short sides to {low}..{high} pixels (data.train_short_sides), evaluation to "
            f"{data.short_side} (data.short_side), where objects have other sizes than those that were learned",
        )  # fmt: skip
    if not isinstance(data, LabelledImages) or data.image_size >= MIN_CROP * data.eval_resize:
        return ()
    size, usual = data.image_size, default_resize(data.image_size)
    return (
        f"evaluation scales images to a short side of {data.eval_resize} (data.eval_resize) and sees the central "
        f"{size} x {size} pixels (data.image_size), {100 * (size / data.eval_resize) ** 2:.2g} % of a square one; "
        f"data.eval_resize={usual} would show {100 * (size / usual) ** 2:.2g} %",
    )


def resolve_evaluation(recipe: Recipe, root: Path, classes: Sequence[str]) -> ResolvedStage:
    """Open and check the validation split of a recipe of one stage, for a model that is trained already.

    Labels are numbered in the order of the model's classes. The training split is read for the digest alone, and need
    not exist: then the digest is that of the validation split.

    Args:
        recipe: of `pipeline.trained_models.trained_recipe`.
        root: the platform's root.
        classes: of the model, in the order of its outputs.

    Raises:
        UserError, UserErrors: the data cannot be used, or has classes of other names.
    """
    (name,) = recipe.stages
    try:
        return _resolve_evaluation(recipe, name, root, classes)
    except UserErrors as several:
        raise UserErrors([in_stage(name, error) for error in several.errors]) from None
    except UserError as error:
        raise in_stage(name, error) from None


def _resolve_evaluation(recipe: Recipe, name: str, root: Path, classes: Sequence[str]) -> ResolvedStage:
    stage = recipe.stages[name]
    check_uri(tracking_uri(stage.tracking.uri, root))
    if stage.data.shapes is not None:
        write_shapes(stage.data.shapes, root / Path(stage.data.root).expanduser())
    cache = ContentCache.in_root(root)
    source = open_source(stage.data, "val", root, classes)
    source.read_contents(cache, "data.val")
    threads = min(16, 4 * (os.cpu_count() or 1))
    report = check_split(source, stage.data, threads, cache=root / "cache" / "checks")
    raise_if_fatal(report, stage.data.max_bad_fraction, where="data.val")
    errors, warnings = inspect_validation(source, stage.data, report)
    raise_all(errors)
    if stage.promotion.metric == "top5":
        _refuse_top5(source.classes, "promotion.metric", "promotion.metric=top1")
    try:
        train = open_source(stage.data, "train", root, classes)
        train.read_contents(cache, "data.train")
        digest = f"content:{hashlib.sha256(f'{train.digest()} {source.digest()}'.encode()).hexdigest()}"
    except UserError:  # missing or of no use, which does not matter: nothing is trained
        train, digest = None, source.digest()
    own_hash = stage_hash(stage, digest.partition(":")[2], [])
    return ResolvedStage(
        name=name,
        stage=stage,
        run_name=f"{recipe.name}-{name}-{own_hash}",
        hash=own_hash,
        digest=digest,
        classes=source.classes,
        train_samples=len(train or ()),
        val_samples=len(source),
        unreadable=len(report.unreadable),
        ignored=source.ignored,
        absent_sizes=source.annotations.absent_sizes() if source.annotations else (),
        notes=(
            *source.notes,
            *image_notes(report),
            *warnings,
            *(() if isinstance(stage.data, MaskPairs) else size_warnings(stage.data)),
        ),
        length=Length.of(stage, len(train or source)),
        sources={"val": source},
    )


def _refuse_top5(classes: tuple[str, ...], where: str, instead: str) -> None:
    if len(classes) < TOP5_CLASSES:
        raise UserError(
            f"top-5 accuracy is reported only where there are more than five classes; the data has {len(classes)}",
            where=where,
            fix=f"write {instead}",
        )


def compute_length(stage: Stage, samples: int) -> Length:
    """Return a stage's length for so many training samples.

    Raises:
        UserError: its warm-up, or a phase of smaller images, is not shorter than the training.
    """
    length = Length.of(stage, samples)
    if length.warmup >= length.total:
        raise UserError(
            f"the warm-up ({length.warmup} steps) is not shorter than the training ({length.total} steps: {samples} "
            f"samples, global batch {stage.training.global_batch_size})",
            where="optimizer.schedule",
            fix="shorten the warm-up, or train longer",
        )
    smaller = max((end for end, _ in length.image_sizes), default=0)
    if smaller >= length.total:
        raise UserError(
            f"the smaller images take {smaller} steps, and the training has {length.total} ({samples} samples, global "
            f"batch {stage.training.global_batch_size}): no image would have the size data.image_size",
            where="training.image_size_schedule",
            fix="shorten the phases, or train longer",
        )
    return length


def unused_data(resolved: ResolvedStage) -> str:
    """Return which data is not used, and what was changed in it, as the end of a sentence; empty where nothing is."""
    unreadable = f", {resolved.unreadable} unreadable" * bool(resolved.unreadable)
    ignored = f", {describe_skipped(resolved.ignored)}" if resolved.ignored else ""
    return unreadable + ignored + "".join(f"; {note}" for note in resolved.notes)


def describe(resolved: ResolvedStage) -> dict[str, str]:
    """Return all that data and defaults decide about a stage, as texts by name."""
    stage, length = resolved.stage, resolved.length
    training, cluster = stage.training, stage.cluster
    points = sorted({0, length.warmup, length.total // 2, length.total - 1})
    per_worker = training.global_batch_size / cluster.workers / training.accumulation_steps
    workers = f"{cluster.workers} worker{'s' * (cluster.workers > 1)}"
    synchronized = cluster.gpus_per_worker > 0 and cluster.workers > 1
    largest = largest_rate(stage.optimizer, length)
    return {
        "run": resolved.run_name,
        "data": f"{stage.data.source} {stage.data.root}: {resolved.train_samples} training and {resolved.val_samples} "
        f"validation samples, {len(resolved.classes)} classes{unused_data(resolved)}",
        "digest": resolved.digest,
        "batch": f"{training.global_batch_size} = {workers} x {training.accumulation_steps} "
        f"micro-batch{'es' * (training.accumulation_steps > 1)} x {per_worker:g}",
        "steps": f"{length.total} ({length.total / length.steps_per_epoch:.4g} epochs of "
        f"{length.steps_per_epoch:.4g}), warm-up {length.warmup}, evaluation every {length.evaluate_every} "
        "and at the end",
        "image sizes": _describe_image_sizes(length),
        "learning rate": "step "
        + ", ".join(f"{step}: {learning_rate(step, stage.optimizer, length):.4g}" for step in points)
        + f"; largest {largest:.4g}, optimizer.lr {stage.optimizer.lr:.4g}",
        "resources": f"{workers} x ({cluster.cpus_per_worker:g} CPU, {cluster.gpus_per_worker:g} GPU)",
        "batch norm": "over all workers (SyncBatchNorm)" if synchronized else "by each worker, rank 0's is kept",
    }


def _describe_image_sizes(length: Length) -> str:
    """Return the sizes of training images by step; empty where they have one."""
    if not length.image_sizes:
        return ""
    sizes = "".join(f"{side} up to step {end}, " for end, side in length.image_sizes)
    share = length.work(length.total) / length.total
    return f"{sizes}then {length.image_size}; {share:.0%} of the pixels of {length.image_size} throughout"
