"""A folder of images, answered by a registered model or a finished run."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.cli.json_output import add_json, messages_aside, print_document
from scalablevit.cli.prediction_folder import (
    BAD,
    LEFT_OUT,
    NOTE,
    check_out,
    deliver,
    predicted,
    print_left_out,
    tabulate,
)
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.recipe import Stage
from scalablevit.config.root import platform_root
from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.names import shown
from scalablevit.data.sources.files import left_out, list_images
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.runs.result import without_secrets

if TYPE_CHECKING:
    from scalablevit.tasks.output import Answer

EPILOG = f"""\
MODEL is models:/<name>@<alias>, models:/<name>/<version> or the name of a run under <root>/runs. Its weights and its
recipe are read; nothing of the code in the registry is run. Overrides change the recipe: task.score_threshold=0.5,
tracking.uri=http://..., cluster.gpus_per_worker=1.

MODEL may also be the address of `mlflow models serve`: http://127.0.0.1:5001. All images then LEAVE THIS MACHINE FOR
THAT ADDRESS (unencrypted by http), one after another. The server names its model's classes before any image is sent.

What comes out, by the model's task (file names are relative to IMAGES):
  classification  labels.csv: file, label, probability, top5
  segmentation    masks/<file>.png (palette images of class numbers), overlays/<file>.jpg, shares.csv, classes.csv
  detection       detections.json (COCO's format, with a score for each annotation), overlays/<file>.jpg (of scores
                  of {SHOWN_SCORE} or more)
and {NOTE}. Images that cannot be decoded, or whose names are too long for those of their pictures, are
named in {BAD} and left out of the rest; files that are no images by their suffixes are named in
{LEFT_OUT}. An interrupted prediction leaves nothing, and with --overwrite the earlier one; a killed one may leave
a hidden folder .partial-... in DIR, or next to a new DIR, which the next one names.

With RAY_ADDRESS the images are divided among the cluster's processes (IMAGES, --out and --root must be folders that
every node sees); without, this process answers them all.

Exit codes: 0 every image answered; 1 bad images, all named; 2 something that you can fix."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("images", metavar="IMAGES", type=Path, help="folder of images, with its subfolders")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="new or empty folder for the answers")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier prediction in --out")
    parser.add_argument("--root", metavar="DIR", help="the platform's root (SCALABLEVIT_ROOT, ~/scalablevit)")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be done, write nothing"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Predict and print; see `add_arguments`."""
    with messages_aside(options.json):
        code = _run(options)
    if options.json:
        out = options.out.expanduser().absolute()
        print_document(predicted(out, dry_run=options.dry_run))
    return code


def _run(options: argparse.Namespace) -> int:
    images, out = options.images.expanduser().absolute(), options.out.expanduser().absolute()
    if "://" in options.model:
        from scalablevit.cli.predict_served import run_served

        return run_served(options, images, out)
    root = platform_root(options.root, make=False)
    names, ignored = list_images(images)
    check_out(out, images, options.overwrite)
    weights, config, sha256 = find_model(options.model, options.overrides, root)
    recipe = trained_recipe("predict", config, options.overrides, options.model)
    stage = without_secrets(recipe.stages["predict"])
    print(f"  model   {options.model}: {stage.task.kind}, {len(config['classes'])} classes, sha256 {sha256[:12]}")
    print(f"  images  {len(names)} in {shown(images)}, {left_out(ignored)}", flush=True)
    if options.dry_run:
        print_left_out(ignored)
        print("dry run: nothing was written")
        return 0
    facts = {"model": options.model, "weights_sha256": sha256, "task": stage.task.kind, "classes": config["classes"],
             "images": shown(images), "ignored": len(ignored),
             "overrides": [mask_credentials(each) for each in options.overrides]}  # fmt: skip
    return deliver(
        out,
        len(names),
        ignored,
        lambda folder: (_write(stage, tuple(config["classes"]), weights, (images, names), folder, root), facts),
    )


def _write(
    stage: Stage,
    classes: tuple[str, ...],
    weights: str,
    images: tuple[Path, list[str]],
    out: Path,
    root: Path,
) -> int:
    """Answer all images into `out`; how many were bad."""
    from scalablevit.serving.predict import Job
    from scalablevit.tasks.registry import task_kind

    folder, names = images
    output = task_kind(stage.task.kind).build_output(classes, out)
    job = Job(stage.model_dump_json(), classes, weights, str(folder), str(out))
    return tabulate(output, _predict(job, names, root, stage), out, len(names))


def _predict(job: Any, names: list[str], root: Path, stage: Stage) -> Iterator[tuple[str, "Answer"]]:
    from scalablevit.serving.predict import predict_here, predict_on_ray

    if not os.environ.get("RAY_ADDRESS"):
        return predict_here(job, names)
    from scalablevit.pipeline import cluster

    cluster.connect([], root, imports=stage.imports)
    cluster.refuse_unseen({job.weights: f"--root ({root})", job.images: "IMAGES", job.out: "--out"})
    one = {"workers": 1, "min_workers": None}
    processes = cluster.copies(stage.model_copy(update={"cluster": stage.cluster.model_copy(update=one)}))
    if not processes:
        raise UserError(
            f"the cluster has no node with {stage.cluster.cpus_per_worker:g} CPU and "
            f"{stage.cluster.gpus_per_worker:g} GPU",
            where="cluster.cpus_per_worker, cluster.gpus_per_worker",
            fix="ask for less, such as cluster.gpus_per_worker=0, or unset RAY_ADDRESS to predict in this process",
        )
    print(f"  cluster room for {processes} processes", flush=True)
    return predict_on_ray(job, names, processes)
