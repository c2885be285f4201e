"""The output folder of a prediction: checked first, written as a whole, and summed up on the screen."""

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
from scalablevit.data.names import printable
from scalablevit.data.sources.files import format_first, stem, why_skipped
from scalablevit.runs.output_dir import refuse_unusable, write_folder
from scalablevit.text import and_more

if TYPE_CHECKING:
    from scalablevit.tasks.output import Output, PredictionDict

NOTE = "prediction.json"
"""What was predicted, and by which model; its presence also marks a folder that this command may overwrite."""
BAD = "bad_images.csv"
LEFT_OUT = "left_out.csv"
SHOWN = 20
"""Most bad images, and most skipped files, that are printed; the tables have all."""
PROGRESS_EVERY_S = 10.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True)
class PredictionCounts:
    """How many images could not be predicted, and what the others took."""

    bad: int
    """Images without a prediction."""
    seconds: float
    """From the loaded model to the last prediction."""


def fill_output_folder(
    out: Path,
    images: GivenImages,
    facts: Mapping[str, Any],
    write: Callable[[Path, Mapping[str, str]], PredictionCounts],
    *,
    timed: str = "",
) -> int:
    """Write predictions, tables and note into the output folder, and print a summary.

    Args:
        out: see `check_output_folder`.
        images: those to predict.
        facts: for the note, its `task` among them.
        write: writes predictions into a folder, given the names of the images' drawn files by the images' own names.
        timed: what else is in the time of the predictions, for the summary.

    Returns:
        The exit code: 1 if there are bad images, else 0.
    """
    from scalablevit.tasks.output import picture_names  # imported late: it loads NumPy

    started, count, ignored = time.monotonic(), len(images.names), images.ignored
    pictures = picture_names(images.names)
    numbered = {name: picture for name, picture in pictures.items() if picture != stem(name)}
    if not any("." not in file_name for file_name in task_info(facts["task"]).output_files):
        numbered = {}  # nothing is drawn
    if numbered:
        named = format_first([f"{name} as {picture}" for name, picture in numbered.items()])
        print(f"  names   files of images that differ in their suffix alone are numbered: {named}", flush=True)
    written = dict.fromkeys(name for info in TASKS.values() for name in info.output_files)
    with write_folder(out, (*written, BAD, LEFT_OUT, NOTE)) as folder:
        counts = write(folder, pictures)
        with (folder / LEFT_OUT).open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(("file", "reason"))
            table.writerows((printable(name), why_skipped(name)) for name in ignored)
        names = {printable(name): printable(picture) for name, picture in numbered.items()}
        note = {**facts, "answered": count - counts.bad, "bad": counts.bad, "numbered": names}
        # UTF-8 has no bytes of names for broken UTF-8, which an override may have too: JSON escapes them in this form
        (folder / NOTE).write_text(
            json.dumps(note, indent=1, ensure_ascii=False), encoding="utf-8", errors="backslashreplace"
        )
    rate = f"{count / max(counts.seconds, 1e-9):.3g} images/s {timed}".rstrip()
    seconds = time.monotonic() - started
    made = f"predicted {count - counts.bad} of {count} images"
    print(f"{made}, {rate}; {seconds:.1f} s in all without the start; they are in {printable(out)}")
    if output_note := task_info(facts["task"]).output_note:
        print(output_note)
    if counts.bad:
        print(f"{counts.bad} images without a prediction, and why: {printable(out / BAD)}")
    if ignored:
        print_skipped_files(ignored)
        print(f"{len(ignored)} files were left out, and why: {printable(out / LEFT_OUT)}")
    return 1 if counts.bad else 0


def prediction_document(out: Path, *, dry_run: bool = False) -> Prediction:
    """Return the JSON document about a prediction, from the note in its folder.

    Args:
        out: the folder.
        dry_run: nothing was written; the numbers are null.
    """
    if dry_run:
        return Prediction(folder=str(out), images=None, bad=None, left_out=None)
    note = json.loads((out / NOTE).read_text(encoding="utf-8"))
    images = note["answered"] + note["bad"]
    return Prediction(folder=str(out), images=images, bad=note["bad"], left_out=note["ignored"])


def print_skipped_files(ignored: Sequence[str]) -> None:
    """Print the first `SHOWN` files that are no images by their names, with the reason."""
    for name in ignored[:SHOWN]:
        print(f"{printable(name)}\t{why_skipped(name)}")
    if more := and_more(len(ignored), SHOWN, before="", what="more files left out"):
        print(more)


def check_output_folder(out: Path, images: GivenImages, overwrite: bool) -> None:
    """Refuse a folder in which files would be lost, or predictions would be taken for images.

    Args:
        out: the folder; it need not exist.
        images: those to predict.
        overwrite: an earlier prediction in it may be replaced.

    Raises:
        UserError: it is no folder, cannot be written, is in IMAGES or around them, or holds other things.
    """
    refuse_overlap(out, images)
    refuse_unusable(out)
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / NOTE).is_file():
        raise UserError(
            f"{printable(out)} is not empty, and no earlier prediction ({NOTE}) is there",
            where="--out",
            fix="name a new or empty folder",
        )
    if not overwrite:
        raise UserError(
            f"{printable(out)} holds an earlier prediction", where="--out", fix="name another, or add --overwrite"
        )


def tabulate(
    output: "Output", predictions: Iterable[tuple[str, "PredictionDict"]], out: Path, count: int
) -> PredictionCounts:
    """Write the tables of predictions and of bad images, and print the progress.

    Args:
        output: the tables of the kind of task.
        predictions: name of each image, and its prediction or the reason why there is none, as `bad`.
        out: the folder.
        count: images in all.

    Returns:
        The counts; their seconds are those of this call.
    """
    started, last_printed, bad = time.monotonic(), time.monotonic(), 0
    with output, (out / BAD).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "reason"))
        for done, (name, prediction) in enumerate(predictions, start=1):
            if "bad" in prediction:
                bad += 1
                table.writerow((printable(name), prediction["bad"]))
                if bad <= SHOWN:
                    print(f"bad: {printable(name)}\t{prediction['bad']}", flush=True)
            else:
                output.add(name, prediction)
            if time.monotonic() > last_printed + PROGRESS_EVERY_S:
                last_printed = time.monotonic()
                print(f"  {done} of {count} images, {done / (last_printed - started):.3g}/s", flush=True)
    return PredictionCounts(bad, time.monotonic() - started)
