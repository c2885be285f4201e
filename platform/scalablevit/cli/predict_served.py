"""A folder of images, answered by a model that `mlflow models serve` serves."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scalablevit.cli.prediction_folder import check_out, deliver, print_left_out, tabulate
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode_image
from scalablevit.data.names import shown
from scalablevit.data.sources.files import left_out, list_images
from scalablevit.serving.served import Declined, Description, Served, read_answer
from scalablevit.tasks.output import Answer, Output, draw
from scalablevit.tasks.registry import task_kind


def run_served(options: argparse.Namespace, images: Path, out: Path) -> int:
    """`cli.predict.run` for an address."""
    if options.overrides:
        raise UserError(
            "a served model answers by its own recipe", where=f"override {options.overrides[0]!r}", fix="leave it out"
        )
    server = Served(options.model)
    names, ignored = list_images(images)
    check_out(out, images, options.overwrite)
    model = server.describe()
    print(f"  model   served at {server.address}: images leave this machine for it")
    print(f"          {model.task}, {len(model.classes)} classes")
    print(f"  images  {len(names)} in {shown(images)}, {left_out(ignored)}", flush=True)
    if options.dry_run:
        print_left_out(ignored)
        print("dry run: no image was sent, nothing was written")
        return 0

    facts = {"model": server.address, "task": model.task, "classes": model.classes, "images": shown(images),
             "ignored": len(ignored), "overrides": []}  # fmt: skip
    return deliver(out, len(names), ignored, lambda folder: (_write(server, model, images, names, folder), facts))


def _write(server: Served, model: Description, images: Path, names: Sequence[str], folder: Path) -> int:
    """Answer all images into `folder`; how many were bad.

    Raises:
        UserError: the server fails, or answers no image at all.
    """
    output = task_kind(model.task).build_output(model.classes, folder)
    answers = ((name, _predict_image(server, model, images, name, output)) for name in names)
    bad = tabulate(output, answers, folder, len(names))
    if bad == len(names):
        raise UserError(
            f"none of the {bad} images was answered", where=shown(images), fix="see the reasons printed above"
        )
    return bad


def _predict_image(server: Served, model: Description, images: Path, name: str, output: Output) -> Answer:
    """The answer to an image, its pictures written; or `bad`, the reason why there is none."""
    try:
        content = (images / name).read_bytes()
        image = decode_image(content, model.max_pixels, name, limit="the server's limit")
        received = server.answer(content)
    except (BadSample, Declined, OSError) as error:
        return {"bad": error.reason if isinstance(error, BadSample) else str(error)}
    try:
        answer = read_answer(received, (image.shape[0], image.shape[1]), model)
    except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise server.wrong(f"answers {shown(name)} otherwise than a model of this platform: {error}") from None
    return draw(output, name, image, answer)
