"""`--json`: one document on standard output and nothing else there; what people read goes to standard error."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.errors import UserError
from scalablevit.data.names import printable

if TYPE_CHECKING:  # commands that print no document need not import it
    from scalablevit.cli.documents import Document


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document, and everything else to standard error"
    )


STDOUT = Path("-")
"""Stands for `--json` without a file."""


def add_json_or_file(parser: argparse.ArgumentParser) -> None:
    """Add `--json`, which may name a file to write instead."""
    parser.add_argument(
        "--json", type=_json_file, nargs="?", const=STDOUT, metavar="FILE",
        help="print one JSON document, and everything else to standard error; with FILE write JSON to FILE instead, "
        "and print as usual",
    )  # fmt: skip


def _json_file(text: str) -> Path:
    """Return the file of `--json FILE`; refuse what was probably meant for the command, such as an override."""
    if text == str(STDOUT):
        return STDOUT
    if re.match(r"[\w.]+=", text) or "://" in text or text.startswith("models:/"):
        raise argparse.ArgumentTypeError(f"{text!r} was taken for its FILE: write `--json` last, or `--json -`")
    return Path(text)


def check_file(file: Path | None) -> None:
    """Refuse, before the work, a file that could not be written after it.

    Raises:
        UserError: it is a folder, its folder does not exist, or it cannot be written.
    """
    if file is None or file is STDOUT:
        return
    try:
        in_folder, is_folder = file.parent.is_dir(), file.is_dir()
        writable = os.access(file if file.exists() else file.parent, os.W_OK)
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise UserError(
            f"cannot write {printable(file)}: {error.strerror or error}", where="--json", fix="name another file"
        ) from None
    if not in_folder:
        raise UserError(
            f"no folder {printable(file.parent)}", where="--json", fix="name a file in a folder that is there"
        )
    if is_folder:
        raise UserError(f"{printable(file)} is a folder", where="--json", fix="name a file in it")
    if not writable:
        raise UserError(f"{printable(file)} may not be written", where="--json", fix="name another file")


@contextmanager
def stdout_to_stderr(wanted: bool) -> Iterator[None]:
    """Redirect standard output to standard error within the block, if `wanted`."""
    with redirect_stdout(sys.stderr) if wanted else nullcontext():
        yield


def print_document(document: "Document") -> None:
    """Print a document, its keys `schema` and `version` first."""
    head = {"schema": document.schema_name, "version": document.version}
    # pydantic's own JSON has null for numbers that are not finite
    values = json.loads(document.model_dump_json())
    print(json.dumps({**head, **values}, indent=1, ensure_ascii=False, allow_nan=False))
