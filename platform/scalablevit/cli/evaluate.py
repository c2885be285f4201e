"""Evaluate a registered model or a finished run on its validation split or on other data."""

import argparse
import json
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from scalablevit.cli.arguments import ON_A_CLUSTER, add_model, add_root
from scalablevit.cli.documents import Evaluation
from scalablevit.cli.json_output import STDOUT, add_json_or_file, check_file, print_document, stdout_to_stderr
from scalablevit.config.root import platform_root
from scalablevit.config.stored import ModelConfig
from scalablevit.config.task_info import TaskInfo, task_info
from scalablevit.config.user_code import package_sums
from scalablevit.pipeline import cluster
from scalablevit.pipeline.resolve import ResolvedStage, describe, resolve_evaluation, unused_data
from scalablevit.pipeline.resolved_recipe import PLANS, write_resolved
from scalablevit.pipeline.seen_images import find_seen
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.run_files import RUNS
from scalablevit.runs.result import without_secrets

COUNTS = ("val/samples", "val/bad_samples")
"""Metrics that are whole numbers."""
SHOWN_CLASSES = 10
"""Most classes with the best, and with the worst values, that are printed of a metric."""
EPILOG = f"""\
The model's own recipe says what it is evaluated on; overrides change that: data.root=/other/data (the same layout; the
validation split is enough, and its classes may come in any order), cluster.workers=4,
task.test_time_augmentation='{{scales: [0.75, 1.0, 1.25], flip: true}}', tracking.uri=http://...

Images that the model was trained on are counted where its run is below the root, by their bytes, and refused above
data.max_shared_fraction; files that cannot be decoded are counted, and refused above data.max_bad_fraction.

{ON_A_CLUSTER}

Exit codes: 0 done; 1 a failure while running; 2 something that you can fix; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_model(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    add_root(parser)
    parser.add_argument("--dry-run", action="store_true", help="check everything, print what would run, start nothing")
    add_json_or_file(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print; see `add_arguments`.

    Raises:
        UserError: there is no such model, or its recipe, the data or the cluster does not fit.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
    """
    check_file(options.json)
    with stdout_to_stderr(options.json is STDOUT):
        evaluation = _evaluate(options)
    if options.json is STDOUT:
        print_document(evaluation)
    elif options.json is not None and evaluation.metrics is not None:
        options.json.write_text(json.dumps(evaluation.metrics, indent=1), encoding="utf-8")
    return 0


def _evaluate(options: argparse.Namespace) -> Evaluation:
    root = platform_root(options.root, make=False)
    weights, config, sha256 = find_model(options.model, options.overrides, root)
    ungated: ModelConfig = {**config, "stage": {**config["stage"], "promotion": {}}}  # an evaluation has no gate
    recipe = trained_recipe("evaluate", ungated, options.overrides, options.model)
    stage = resolve_evaluation(recipe, root, config["classes"])
    # imported late: a mistake above is reported before torch is loaded
    from scalablevit.pipeline.stage_model import model_cost

    own = trained_recipe("evaluate", ungated, (), options.model).stages["evaluate"].data
    most = stage.stage.data.max_shared_fraction
    seen = find_seen(options.model, Path(weights), sha256, own, stage.sources["val"], most, root)
    facts = {**describe(stage), "data": _described_data(stage), "seen": seen.words}
    for name in ("data", "digest", "seen", "resources"):
        print(f"  {name:<12}{facts[name]}", flush=True)
    print(f"  {'model':<12}{model_cost(stage.name, stage.stage, stage.classes)}", flush=True)
    if getattr(stage.stage.task, "test_time_augmentation", None):
        print(
            f"  {'views':<12}several (task.test_time_augmentation): predict, promote and servers take one", flush=True
        )
    metrics = None
    if options.dry_run:
        write_resolved(recipe, [stage], root / PLANS / f"{recipe.name}.yaml")
        print("dry run: nothing was started")
    else:
        metrics = evaluate_weights(stage, weights, sha256, root)
        print(_format_metrics(metrics, stage))
    return Evaluation(
        model=options.model, weights_sha256=sha256, task=stage.stage.task.kind, classes=stage.classes,
        samples=stage.val_samples, data_digest=stage.digest, seen=seen.count, metrics=metrics,
    )  # fmt: skip


def _format_metrics(metrics: dict[str, float], resolved: ResolvedStage) -> str:
    """Return the metrics as lines, and one on samples that are in none of them."""
    kept, folded = _fold_classes(metrics, task_info(resolved.stage.task.kind))
    width = max(map(len, kept))
    lines = [f"{name:<{width}}  {value:.{0 if name in COUNTS else 4}f}" for name, value in kept.items()]
    if folded:
        lines.append(f"of single classes, only the {SHOWN_CLASSES} best and worst values; --json has {folded} more")
    if bad := metrics["val/bad_samples"]:
        lines.append(f"{bad:.0f} of {resolved.val_samples} validation samples could not be decoded: no metric has them")
    return "\n".join(lines)


def _fold_classes(metrics: dict[str, float], task: TaskInfo) -> tuple[dict[str, float], int]:
    """Return the metrics with the `SHOWN_CLASSES` best and worst classes of each, and how many were left out."""
    left_out: set[str] = set()
    for name in task.class_metrics:
        of_classes = sorted((key for key in metrics if key.startswith(f"val/{name}/")), key=lambda key: metrics[key])
        left_out.update(of_classes[SHOWN_CLASSES:-SHOWN_CLASSES])
    return {name: value for name, value in metrics.items() if name not in left_out}, len(left_out)


def _described_data(resolved: ResolvedStage) -> str:
    data = resolved.stage.data
    counts = f"{resolved.val_samples} validation samples, {len(resolved.classes)} classes{unused_data(resolved)}"
    return f"{data.source} {data.root}: {counts}"


def evaluate_weights(stage: ResolvedStage, weights: str, sha256: str, root: Path) -> dict[str, float]:
    """Return the metrics of weights on a stage's validation split, by reported name, computed by Ray Train workers.

    Args:
        stage: the resolved stage.
        weights: path of the weights' file.
        sha256: of the file, in hexadecimal.
        root: the platform's root.

    Raises:
        UserError: the cluster cannot be reached or has too little room, or workers found something to fix.
        TrainingFailed: workers failed more often than `cluster.max_failures`, or could not be placed.
    """
    from scalablevit.training.data_listing import store_listings
    from scalablevit.training.launch import launch
    from scalablevit.training.worker import WorkerConfig

    folder = root / RUNS / f"evaluate-{stage.hash}-{uuid.uuid4().hex[:8]}"
    worker_config = WorkerConfig(
        stage=without_secrets(stage.stage).model_dump_json(),
        run_folder="",
        root=str(root),
        init_weights=weights,
        init_sha256=sha256,
        evaluate_only=True,
        data_listing=str(folder),
        user_code=package_sums(stage.stage.imports),
    )
    try:
        store_listings(str(folder), stage.sources)
        # nothing is written to the run storage of its recipe
        here = stage.stage.model_copy(update={"cluster": stage.stage.cluster.model_copy(update={"storage": None})})
        files = {weights: f"weights ({weights})", str(folder): f"--root ({root})"}
        cluster.connect([replace(stage, stage=here)], root, files=files)
        result = launch(stage.stage, worker_config, str(folder), [])
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # only Ray's own files and the listing
    if result.metrics is None:
        raise RuntimeError("rank 0 returned no metrics")
    return result.metrics
