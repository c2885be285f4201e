"""`--json`: one document on standard output and nothing else there; what people read goes to standard error."""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from scalablevit.config.errors import UserError

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
    """Add `--json`, which may name a file for the metrics instead."""
    parser.add_argument(
        "--json", type=_json_file, nargs="?", const=STDOUT, metavar="FILE",
        help="print one JSON document, and everything else to standard error; with FILE also write the metrics to it, "
        "and print as without --json",
    )  # fmt: skip


def _json_file(text: str) -> Path:
    """Return the file of `--json FILE`; refuse what was probably meant for the command, such as an override."""
    if text == str(STDOUT):
        return STDOUT
    if re.match(r"[\w.]+=", text) or "://" in text or text.startswith("models:/"):
        raise argparse.ArgumentTypeError(f"{text!r} was taken for its FILE: write `--json` last, or `--json -`")
    return Path(text)


def check_file(file: Path | None) -> None:
    """Refuse a file in a folder that does not exist.

    Raises:
        UserError: there is no such folder.
    """
    if file is not None and not file.parent.is_dir():
        raise UserError(f"no folder {file.parent}", where="--json", fix="name a file in a folder that is there")


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
