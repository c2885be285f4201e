"""Predict images with a model that `mlflow models serve` serves."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from scalablevit.cli.prediction_folder import (
    PredictionCounts,
    check_output_folder,
    fill_output_folder,
    print_skipped_files,
    tabulate,
)
from scalablevit.cli.prediction_input import GivenImages, find_images
from scalablevit.config.errors import UserError
from scalablevit.config.user_code import import_user_code
from scalablevit.data.decoding import BadSample, decode_image
from scalablevit.data.names import printable
from scalablevit.data.sources.files import describe_skipped
from scalablevit.serving.served import Description, ImageRefused, ModelServer, validate_prediction
from scalablevit.tasks.output import Output, PredictionDict, draw
from scalablevit.tasks.registry import task_kind


def run_served(options: argparse.Namespace, given: Path, out: Path) -> int:
    """Predict images with a served model, as `cli.predict.run` does with other models.

    Args:
        options: of the command; `model` is the server's address.
        given: absolute path of IMAGES.
        out: absolute path of --out.

    Returns:
        The exit code.

    Raises:
        UserError: overrides are given, the images or --out are of no use, or the server fails; or as
            `import_user_code`.
    """
    if options.overrides:
        raise UserError(
            "a served model predicts by its own recipe", where=f"override {options.overrides[0]!r}", fix="leave it out"
        )
    import_user_code(options.imports, where="--imports")
    server = ModelServer(options.model)
    images = find_images(given)
    check_output_folder(out, images, options.overwrite)
    model = server.describe()
    print(f"  model   served at {server.address}{'' if server.is_local else ': images leave this machine for it'}")
    print(f"          {model.task}, {len(model.classes)} classes")
    print(f"  images  {len(images.names)} in {printable(given)}, {describe_skipped(images.ignored)}", flush=True)
    if options.dry_run:
        print_skipped_files(images.ignored)
        print("dry run: no image was sent, nothing was written")
        return 0

    facts = {"model": server.address, "task": model.task, "classes": model.classes, "images": printable(given),
             "ignored": len(images.ignored), "overrides": []}  # fmt: skip
    return fill_output_folder(
        out, images, facts, lambda folder, pictures: _write(server, model, images, pictures, folder)
    )


def _write(
    server: ModelServer, model: Description, images: GivenImages, pictures: Mapping[str, str], folder: Path
) -> PredictionCounts:
    """Write the predictions of all images into `folder`, and return how many there are.

    Raises:
        UserError: the server fails, or no image could be predicted.
    """
    output = task_kind(model.task).build_output(model.classes, folder)
    predictions = (
        (name, _predict_image(server, model, images.folder / name, picture, output))
        for name, picture in pictures.items()
    )
    counts = tabulate(output, predictions, folder, len(pictures))
    if counts.bad == len(pictures):
        raise UserError(
            f"none of the {counts.bad} images could be predicted",
            where=printable(images.given),
            fix="see the reasons printed above",
        )
    return counts


def _predict_image(server: ModelServer, model: Description, file: Path, picture: str, output: Output) -> PredictionDict:
    """Return the prediction for an image, after drawing it; or the reason why there is none, as `bad`.

    Raises:
        UserError: the server fails, or sends something that is no prediction.
    """
    try:
        content = file.read_bytes()
        image = decode_image(content, model.max_pixels, file.name, limit="the server's limit")
        received = server.predict(content)
    except (BadSample, ImageRefused, OSError) as error:
        return {"bad": error.reason if isinstance(error, BadSample) else str(error)}
    otherwise = f"predicts {printable(file.name)} otherwise than a model of this platform"
    try:
        prediction = validate_prediction(received, (image.shape[0], image.shape[1]), model)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError) as error:
        raise server.mistake(f"{otherwise}: {error}") from None
    try:  # an OSError here is the output folder's
        return draw(output, picture, image, prediction)
    except (ValueError, LookupError) as error:  # such as a mask with more labels than the model has classes
        raise server.mistake(f"{otherwise}: {error}") from None
