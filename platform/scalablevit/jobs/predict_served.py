"""A folder of images, answered by a model that `mlflow models serve` serves."""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scalablevit.config.data import MAX_PIXELS
from scalablevit.config.errors import UserError
from scalablevit.data.decoding import BadSample, decode_image, read_image
from scalablevit.data.names import shown
from scalablevit.data.sources import list_images
from scalablevit.jobs.predict import check_out, deliver, tabulate
from scalablevit.serving.outputs import Answer, Output, build_output, draw
from scalablevit.serving.served import Declined, Served, read_answer

NOT_SEEN = "(in no image)"
"""Stands for a class that no answer names, where `--classes` does not."""


def run_served(options: argparse.Namespace, images: Path, out: Path) -> int:
    """`jobs.predict.run` for an address."""
    if options.overrides:
        raise UserError(
            "a served model answers by its own recipe", where=f"override {options.overrides[0]!r}", fix="leave it out"
        )
    server = Served(options.model)
    names, ignored = list_images(images)
    check_out(out, images, options.overwrite)
    classes = None if options.classes is None else _read_classes(options.classes)
    server.check()
    print(f"  model   served at {server.address}: images leave this machine for it")
    print(f"  images  {len(names)} in {shown(images)}, {len(ignored)} other files left out", flush=True)
    if options.dry_run:
        print("dry run: no image was sent, nothing was written")
        return 0

    return deliver(out, len(names), lambda folder: _write(server, classes, (images, names, len(ignored)), folder))


def _write(
    server: Served, given: tuple[str, ...] | None, images: tuple[Path, list[str], int], folder: Path
) -> tuple[int, dict[str, Any]]:
    """Answer all images into `folder`; how many were bad, and facts for the note."""
    place, names, ignored = images
    # kept until all are there: which classes there are is known only then
    with tempfile.TemporaryFile("w+", dir=folder, encoding="utf-8") as kept:
        kind, found = _ask(server, place, names, kept)
        classes = _class_list(found) if given is None else _checked(given, found)
        output = build_output(kind, classes, folder)
        kept.seek(0)
        bad = tabulate(output, _drawn(output, place, names, kept), folder, len(names))
    facts = {"model": server.address, "classes": classes, "classes_from": "--classes" if given else "answers",
             "images": shown(place), "ignored": ignored, "overrides": []}  # fmt: skip
    return bad, facts


def _ask(server: Served, images: Path, names: Sequence[str], kept: IO[str]) -> tuple[str, dict[str, int | None]]:
    """Have each image answered, a line in `kept`; the kind of task, and the classes found with their numbers.

    Raises:
        UserError: the server fails, is of another kind, or answers no image at all.
    """
    kind, found, reason = "", dict[str, int | None](), ""
    for name in names:
        try:
            content = (images / name).read_bytes()
            size = decode_image(content, MAX_PIXELS, name).shape[:2]
            received = server.answer(content)
        except (BadSample, Declined, OSError) as error:
            reason = error.reason if isinstance(error, BadSample) else str(error)
            kept.write(json.dumps({"bad": reason}) + "\n")
            continue
        try:
            kind_now, _, numbers = read_answer(received, (size[0], size[1]))
            clash = any(found.get(each, number) != number for each, number in numbers.items())
            if clash or kind not in ("", kind_now):
                raise ValueError("another model than before")
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise server.wrong(f"answers {shown(name)} otherwise than a model of this platform: {error}") from None
        kind = kind_now
        found.update(numbers)
        kept.write(json.dumps(received) + "\n")
    if not kind:
        raise UserError(f"none of the images was answered; the last: {reason}", where=shown(images), fix="see there")
    return kind, found


def _drawn(output: Output, images: Path, names: Sequence[str], kept: IO[str]) -> Iterator[tuple[str, Answer]]:
    """Name and answer of each image, its pictures written."""
    for name, line in zip(names, kept, strict=True):
        received = json.loads(line)
        if "bad" in received:
            yield name, received
            continue
        image = read_image(images / name, MAX_PIXELS)
        _, answer, _ = read_answer(received, (image.shape[0], image.shape[1]))
        yield name, draw(output, name, image, answer)


def _class_list(found: Mapping[str, int | None]) -> tuple[str, ...]:
    """Classes that answers have named, by their numbers, or by their names where they have none."""
    numbers = {number: name for name, number in found.items() if number is not None}
    if numbers:
        return tuple(numbers.get(number, NOT_SEEN) for number in range(max(numbers) + 1))
    return tuple(sorted(found))


def _checked(given: tuple[str, ...], found: Mapping[str, int | None]) -> tuple[str, ...]:
    for name, number in found.items():
        if name not in given or number not in (None, given.index(name)):
            raise UserError(
                f"the model answers {shown(name)}" + ("" if number is None else f", its class {number}"),
                where="--classes",
                fix="give all names of the served model's classes in its order, or leave --classes out",
            )
    return given


def _read_classes(file: Path) -> tuple[str, ...]:
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=shown(file), fix="name a text file") from None
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes or len(set(classes)) < len(classes):
        raise UserError("no names, or one twice", where=shown(file), fix="write each class once, one a line")
    return classes
