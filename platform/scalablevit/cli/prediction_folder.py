"""The folder of a prediction: checked before, filled as a whole, and what is printed of it."""

import csv
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.cli.documents import Prediction
from scalablevit.config.errors import UserError
from scalablevit.config.task_info import TASKS
from scalablevit.data.names import shown
from scalablevit.data.sources.files import why_left_out
from scalablevit.runs.output_dir import refuse_unusable, write_folder
from scalablevit.text import and_more

if TYPE_CHECKING:
    from scalablevit.tasks.output import Answer, Output

NOTE = "prediction.json"
"""What was predicted with what; also marks a folder as made by this script."""
BAD = "bad_images.csv"
LEFT_OUT = "left_out.csv"
SHOWN = 20
"""Files that are named on the screen, of the bad ones and of those left out each; the tables name all."""
SAY_EVERY_S = 10.0


def deliver(out: Path, count: int, ignored: Sequence[str], write: Callable[[Path], tuple[int, dict[str, Any]]]) -> int:
    """Fill the folder, add the note and say what became of `count` images.

    Args:
        out: see `check_out`.
        count: of the images.
        ignored: files of the images' folder that are no images by their names.
        write: answers into a folder; gives how many images were bad, and facts for the note.

    Returns:
        The exit code.
    """
    started = time.monotonic()
    written = dict.fromkeys(name for info in TASKS.values() for name in info.output_files)
    with write_folder(out, (*written, BAD, LEFT_OUT, NOTE)) as folder:
        bad, facts = write(folder)
        with (folder / LEFT_OUT).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "reason"))
            table.writerows((shown(name), why_left_out(name)) for name in ignored)
        note = {**facts, "answered": count - bad, "bad": bad}
        (folder / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"answered {count - bad} of {count} images in {seconds:.1f} s; they are in {shown(out)}")
    if bad:
        print(f"{bad} images have no answer, and why: {shown(out / BAD)}")
    if ignored:
        print_left_out(ignored)
        print(f"{len(ignored)} files were left out, and why: {shown(out / LEFT_OUT)}")
    return 1 if bad else 0


def predicted(out: Path, *, dry_run: bool = False) -> Prediction:
    """Return what the note in a folder says became of the images, as a document."""
    if dry_run:
        return Prediction(folder=str(out), images=None, bad=None, left_out=None)
    note = json.loads((out / NOTE).read_text(encoding="utf-8"))
    images = note["answered"] + note["bad"]
    return Prediction(folder=str(out), images=images, bad=note["bad"], left_out=note["ignored"])


def print_left_out(ignored: Sequence[str]) -> None:
    """Name the first files that are no images by their names, with the reason."""
    for name in ignored[:SHOWN]:
        print(f"{shown(name)}\t{why_left_out(name)}")
    if more := and_more(len(ignored), SHOWN, before="", what="more files left out"):
        print(more)


def check_out(out: Path, images: Path, overwrite: bool) -> None:
    """Refuse a folder in which something would be lost, or in which answers would be taken for images.

    Raises:
        UserError: it is no folder, cannot be written, is in IMAGES or around them, or holds other things.
    """
    here, there = Path(os.path.realpath(out)), Path(os.path.realpath(images))
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(
            f"{shown(out)} and the images are in each other", where="--out", fix="name a folder next to them"
        )
    refuse_unusable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / NOTE).is_file():
        raise UserError(
            f"{shown(out)} is not empty, and no earlier prediction ({NOTE}) is there",
            where="--out",
            fix="name a new or empty folder",
        )
    if not overwrite:
        raise UserError(
            f"{shown(out)} holds an earlier prediction", where="--out", fix="name another, or add --overwrite"
        )


def tabulate(output: "Output", answers: Iterable[tuple[str, "Answer"]], out: Path, count: int) -> int:
    """Tables of the answers, and of `bad` images; how many were bad."""
    started, said, bad = time.monotonic(), time.monotonic(), 0
    with output, (out / BAD).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "reason"))
        for number, (name, answer) in enumerate(answers, start=1):
            if "bad" in answer:
                bad += 1
                table.writerow((shown(name), answer["bad"]))
                if bad <= SHOWN:
                    print(f"bad: {shown(name)}\t{answer['bad']}", flush=True)
            else:
                output.add(name, answer)
            if time.monotonic() > said + SAY_EVERY_S:
                said = time.monotonic()
                print(f"  {number} of {count} images, {number / (said - started):.3g}/s", flush=True)
    return bad
