"""Predict images with a registered model or a finished run."""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.cli.arguments import add_imports, add_model, add_root
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.cli.prediction_folder import (
    BAD,
    LEFT_OUT,
    NOTE,
    PredictionCounts,
    check_output_folder,
    fill_output_folder,
    prediction_document,
    print_skipped_files,
    tabulate,
)
from scalablevit.cli.prediction_input import GivenImages, find_images
from scalablevit.config.errors import UserError, mask_credentials
from scalablevit.config.overrides import path_in_stage
from scalablevit.config.recipe import Stage
from scalablevit.config.root import platform_root
from scalablevit.config.task import SHOWN_SCORE
from scalablevit.data.names import printable
from scalablevit.data.sources.files import describe_skipped
from scalablevit.pipeline.trained_models import find_model, trained_recipe
from scalablevit.runs.result import without_secrets

if TYPE_CHECKING:
    from scalablevit.tasks.output import PredictionDict

EPILOG = f"""\
The model's weights and recipe are read; no code of the registry is run. Overrides change the recipe (not that of a
served model): task.score_threshold=0.5, tracking.uri=http://..., cluster.gpus_per_worker=1.

MODEL may also be the address of `mlflow models serve`: http://127.0.0.1:5001. All images are sent to it, one
after another: with another host's address they LEAVE THIS MACHINE (unencrypted by http). The server names its model's
classes before any image is sent.
Where the model's task is one of your own package, name the package by --imports.

IMAGES is a folder, with its subfolders; one image; or a list that ends in .txt, with one path on each line, absolute or
relative to the list's folder.

What is written, by the model's task (file names are relative to the folder, or to the folder of the image or the list):
  classification  labels.csv: file, label, probability, top5
  segmentation    masks/<name>.png (a class index per pixel, with a palette), overlays/<name>.jpg, classes.csv, and
                  shares.csv: file, class, share of its pixels
  detection       detections.json (COCO's format, with a score for each annotation, and ids of its own: categories
                  are matched by name, images by file_name), overlays/<name>.jpg (of scores of {SHOWN_SCORE} or more;
                  with an override of task.score_threshold, of that or more)
and {NOTE}. <name> is the file's name without its suffix; of images that differ in the suffix alone, the second
and later ones are numbered, as in X_2, and a line names them.

Images that cannot be decoded, or whose names are too long for the files to write, are named in {BAD} and left out
of the rest; files that are no images by their suffixes are named in {LEFT_OUT}. If it is interrupted, nothing is
written, and with --overwrite the earlier prediction stays. A killed process may leave a hidden folder .partial-... in
DIR, or next to a new DIR; the next prediction prints its path.

With RAY_ADDRESS the images are divided among the cluster's processes (IMAGES, --out and --root must be folders that
every node sees); without, this process predicts them all.

Exit codes: 0 every image predicted; 1 bad images, all named; 2 something that you can fix; 130 interrupted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    add_model(parser, ", or http://HOST:PORT")
    parser.add_argument(
        "images", metavar="IMAGES", type=Path, help="folder of images, one image, or a list of paths that ends in .txt"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a value of the model's recipe")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", required=True, help="new or empty folder for the predictions"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier prediction in --out")
    add_imports(parser, "for a server's model whose task it defines")
    add_root(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what would be done, write nothing"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Predict and print; see `add_arguments`.

    Raises:
        UserError: the images or --out are of no use, there is no such model, or the cluster or server does not fit.
    """
    with stdout_to_stderr(options.json):
        code = _run(options)
    if options.json:
        out = options.out.expanduser().absolute()
        print_document(prediction_document(out, dry_run=options.dry_run))
    return code


def _run(options: argparse.Namespace) -> int:
    given, out = options.images.expanduser().absolute(), options.out.expanduser().absolute()
    if "://" in options.model:
        from scalablevit.cli.predict_served import run_served

        return run_served(options, given, out)
    if options.imports:
        raise UserError(
            "has no effect here: the model's own recipe names its packages", where="--imports", fix="leave it out"
        )
    root = platform_root(options.root, make=False)
    images = find_images(given)
    check_output_folder(out, images, options.overwrite)
    weights, config, sha256 = find_model(options.model, options.overrides, root)
    recipe = trained_recipe("predict", config, options.overrides, options.model)
    stage = without_secrets(recipe.stages["predict"])
    print(f"  model   {options.model}: {stage.task.kind}, {len(config['classes'])} classes, sha256 {sha256[:12]}")
    print(f"  images  {len(images.names)} in {printable(given)}, {describe_skipped(images.ignored)}", flush=True)
    if options.dry_run:
        print_skipped_files(images.ignored)
        print("dry run: nothing was written")
        return 0
    facts = {"model": options.model, "weights_sha256": sha256, "task": stage.task.kind, "classes": config["classes"],
             "images": printable(given), "ignored": len(images.ignored),
             "overrides": [mask_credentials(override) for override in options.overrides]}  # fmt: skip
    score = getattr(stage.task, "score_threshold", None) if _sets_score(options.overrides) else None

    def write(folder: Path, pictures: Mapping[str, str]) -> PredictionCounts:
        return _write(stage, tuple(config["classes"]), (weights, images, score), pictures, folder, root)

    loading = "with the loading of the model" if os.environ.get("RAY_ADDRESS") else "without the loading of the model"
    return fill_output_folder(out, images, facts, write, timed=loading)


def _sets_score(overrides: list[str]) -> bool:
    """Return whether an override sets the score threshold."""
    paths = [path_in_stage(override) for override in overrides]
    return ["task", "score_threshold"] in [list(path) for path in paths]


def _write(
    stage: Stage,
    classes: tuple[str, ...],
    what: tuple[str, GivenImages, float | None],
    pictures: Mapping[str, str],
    out: Path,
    root: Path,
) -> PredictionCounts:
    """Write the predictions of all images into `out`, and return how many there are.

    Args:
        stage: of the model.
        classes: of the model.
        what: path of the weights' file; images; least score of detections that are drawn, None: the usual one.
        pictures: names of the images' drawn files, by the images' own names.
        out: folder of the predictions.
        root: the platform's root.

    Raises:
        UserError: the cluster does not fit.
    """
    from scalablevit.serving.predict import PredictionJob
    from scalablevit.tasks.registry import task_kind

    weights, images, score = what
    output = task_kind(stage.task.kind).build_output(classes, out)
    job = PredictionJob(stage.model_dump_json(), classes, weights, str(images.folder), str(out), score)
    return tabulate(output, _predict(job, pictures, root, stage), out, len(images.names))


def _predict(job: Any, pictures: Mapping[str, str], root: Path, stage: Stage) -> Iterator[tuple[str, "PredictionDict"]]:
    from scalablevit.serving.predict import predict_here, predict_on_ray

    if not os.environ.get("RAY_ADDRESS"):
        return predict_here(job, pictures)
    from scalablevit.pipeline import cluster

    cluster.connect([], root, imports=stage.imports)
    cluster.refuse_unseen({job.weights: f"--root ({root})", job.images: "IMAGES", job.out: "--out"})
    processes = cluster.count_processes(stage)
    print(f"  cluster room for {processes} processes", flush=True)
    return predict_on_ray(job, pictures, processes)
