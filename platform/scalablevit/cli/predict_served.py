"""A folder of images, answered by a model that `mlflow models serve` serves."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from scalablevit.cli.prediction_folder import Written, check_out, deliver, print_left_out, tabulate
from scalablevit.cli.prediction_input import GivenImages, find_images
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode_image
from scalablevit.data.names import shown
from scalablevit.data.sources.files import left_out
from scalablevit.serving.served import Description, ImageRefused, ModelServer, read_answer
from scalablevit.tasks.output import Answer, Output, draw
from scalablevit.tasks.registry import task_kind


def run_served(options: argparse.Namespace, given: Path, out: Path) -> int:
    """`cli.predict.run` for an address."""
    if options.overrides:
        raise UserError(
            "a served model predicts by its own recipe", where=f"override {options.overrides[0]!r}", fix="leave it out"
        )
    server = ModelServer(options.model)
    images = find_images(given)
    check_out(out, images, options.overwrite)
    model = server.describe()
    print(f"  model   served at {server.address}: images leave this machine for it")
    print(f"          {model.task}, {len(model.classes)} classes")
    print(f"  images  {len(images.names)} in {shown(given)}, {left_out(images.ignored)}", flush=True)
    if options.dry_run:
        print_left_out(images.ignored)
        print("dry run: no image was sent, nothing was written")
        return 0

    facts = {"model": server.address, "task": model.task, "classes": model.classes, "images": shown(given),
             "ignored": len(images.ignored), "overrides": []}  # fmt: skip
    return deliver(out, images, facts, lambda folder, pictures: _write(server, model, images, pictures, folder))


def _write(
    server: ModelServer, model: Description, images: GivenImages, pictures: Mapping[str, str], folder: Path
) -> Written:
    """Write the predictions of all images into `folder`.

    Raises:
        UserError: the server fails, or answers no image at all.
    """
    output = task_kind(model.task).build_output(model.classes, folder)
    answers = (
        (name, _predict_image(server, model, images.folder / name, picture, output))
        for name, picture in pictures.items()
    )
    done = tabulate(output, answers, folder, len(pictures))
    if done.bad == len(pictures):
        raise UserError(
            f"none of the {done.bad} images could be predicted",
            where=shown(images.given),
            fix="see the reasons printed above",
        )
    return done


def _predict_image(server: ModelServer, model: Description, file: Path, picture: str, output: Output) -> Answer:
    """The answer to an image, its pictures written; or `bad`, the reason why there is none."""
    try:
        content = file.read_bytes()
        image = decode_image(content, model.max_pixels, file.name, limit="the server's limit")
        received = server.answer(content)
    except (BadSample, ImageRefused, OSError) as error:
        return {"bad": error.reason if isinstance(error, BadSample) else str(error)}
    try:
        answer = read_answer(received, (image.shape[0], image.shape[1]), model)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise server.mistake(f"answers {shown(file.name)} otherwise than a model of this platform: {error}") from None
    return draw(output, picture, image, answer)
