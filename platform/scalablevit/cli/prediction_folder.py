"""The folder of a prediction: checked before, filled as a whole, and what is printed of it."""

import csv
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalablevit.cli.documents import Prediction
from scalablevit.cli.prediction_input import GivenImages, refuse_overlap
from scalablevit.config.errors import UserError
from scalablevit.config.task_info import TASKS, task_info
from scalablevit.data.names import shown
from scalablevit.data.sources.files import first, stem, why_left_out
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
PROGRESS_EVERY_S = 10.0


@dataclass(frozen=True)
class PredictionCounts:
    """What came of the images."""

    bad: int
    """Images without an answer."""
    seconds: float
    """From the loaded model to the last answer."""


def fill_output_folder(
    out: Path,
    images: GivenImages,
    facts: Mapping[str, Any],
    write: Callable[[Path, Mapping[str, str]], PredictionCounts],
    *,
    timed: str = "",
) -> int:
    """Fill the folder, add the note and say what became of the images.

    Args:
        out: see `check_output_folder`.
        images: those to predict.
        facts: for the note, its `task` among them.
        write: answers into a folder, with the names of the images' pictures by their own.
        timed: what else the time of the answers has in it, for the screen.

    Returns:
        The exit code.
    """
    from scalablevit.tasks.output import picture_names  # imported late: it loads NumPy

    started, count, ignored = time.monotonic(), len(images.names), images.ignored
    pictures = picture_names(images.names)
    numbered = {name: picture for name, picture in pictures.items() if picture != stem(name)}
    if not any("." not in file_name for file_name in task_info(facts["task"]).output_files):
        numbered = {}  # nothing is drawn
    if numbered:
        named = first([f"{name} as {picture}" for name, picture in numbered.items()])
        print(f"  names   files of images that differ in their suffix alone are numbered: {named}", flush=True)
    written = dict.fromkeys(name for info in TASKS.values() for name in info.output_files)
    with write_folder(out, (*written, BAD, LEFT_OUT, NOTE)) as folder:
        counts = write(folder, pictures)
        with (folder / LEFT_OUT).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "reason"))
            table.writerows((shown(name), why_left_out(name)) for name in ignored)
        note = {**facts, "answered": count - counts.bad, "bad": counts.bad, "numbered": numbered}
        (folder / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8")
    rate = f"{count / max(counts.seconds, 1e-9):.3g} images/s {timed}".rstrip()
    seconds = time.monotonic() - started
    print(f"predicted {count - counts.bad} of {count} images, {rate}; {seconds:.1f} s in all; they are in {shown(out)}")
    if counts.bad:
        print(f"{counts.bad} images without a prediction, and why: {shown(out / BAD)}")
    if ignored:
        print_left_out(ignored)
        print(f"{len(ignored)} files were left out, and why: {shown(out / LEFT_OUT)}")
    return 1 if counts.bad else 0


def prediction_document(out: Path, *, dry_run: bool = False) -> Prediction:
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


def check_output_folder(out: Path, images: GivenImages, overwrite: bool) -> None:
    """Refuse a folder in which something would be lost, or in which answers would be taken for images.

    Raises:
        UserError: it is no folder, cannot be written, is in IMAGES or around them, or holds other things.
    """
    refuse_overlap(out, images)
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


def tabulate(output: "Output", predictions: Iterable[tuple[str, "Answer"]], out: Path, count: int) -> PredictionCounts:
    """Write tables of the answers, and of `bad` images; the clock starts when this is called."""
    started, last_printed, bad = time.monotonic(), time.monotonic(), 0
    with output, (out / BAD).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "reason"))
        for done, (name, prediction) in enumerate(predictions, start=1):
            if "bad" in prediction:
                bad += 1
                table.writerow((shown(name), prediction["bad"]))
                if bad <= SHOWN:
                    print(f"bad: {shown(name)}\t{prediction['bad']}", flush=True)
            else:
                output.add(name, prediction)
            if time.monotonic() > last_printed + PROGRESS_EVERY_S:
                last_printed = time.monotonic()
                print(f"  {done} of {count} images, {done / (last_printed - started):.3g}/s", flush=True)
    return PredictionCounts(bad, time.monotonic() - started)
