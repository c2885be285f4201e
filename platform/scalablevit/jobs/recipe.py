"""Recipes and search spaces rewritten in the current version's keys, from the command line."""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalablevit.config.checking import check
from scalablevit.config.errors import UserError, UserErrors, raise_all
from scalablevit.config.loading import load_recipe, read_mapping
from scalablevit.config.rewriting import Change, is_space, upgrade_text
from scalablevit.config.space import Space
from scalablevit.config.space_loading import load_search
from scalablevit.config.upgrade import VERSION

EPILOG = f"""\
upgrade rewrites the files of recipes and search spaces in place, in the keys of version {VERSION}; comments, order and
formatting stay, and each change is printed with its line in the file as it was. When one of the files cannot be
upgraded, none is changed. Afterwards all files are checked as they are before a training, and the mistakes that remain
are reported.

Exit codes: 0 done, or nothing to do; 2 a file cannot be upgraded, or mistakes remain."""


@dataclass(frozen=True)
class _Upgrade:
    """A file, what it will hold, and what changes."""

    path: Path
    content: bytes
    changes: list[Change]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The script's arguments."""
    parser = argparse.ArgumentParser(
        prog="pipelines/recipe.py", description="Rewrite recipes and search spaces in the current version's keys.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="verb", required=True)
    upgrade = verbs.add_parser("upgrade", help=f"rewrite files of version 1 in the keys of version {VERSION}")
    upgrade.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recipe or search space")
    upgrade.add_argument("--dry-run", action="store_true", help="print the changes, write nothing")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Upgrade the files and print the changes; see `parse`.

    Raises:
        UserError: a file cannot be upgraded, and none is changed; or mistakes remain in files.
    """
    upgrades, errors = [], list[UserError]()
    for path in options.files:
        try:
            upgrades.append(_prepare(path))
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    for each in upgrades:
        for change in each.changes:
            print(f"{each.path}:{change.line}: {change.what}")
        if not each.changes:
            print(f"{each.path}: already version {VERSION}")
        elif not options.dry_run:
            _replace(each.path, each.content)
    if options.dry_run:
        print("dry run: nothing was written")
        return 0
    raise_all([error for each in upgrades for error in _mistakes(each.path)])
    return 0


def _prepare(path: Path) -> _Upgrade:
    """What becomes of a file.

    Raises:
        UserError: it cannot be read, or as `upgrade_text`.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="check the path") from None
    changed, changes = upgrade_text(text, str(path))
    return _Upgrade(path, changed.encode("utf-8"), changes)


def _replace(path: Path, content: bytes) -> None:
    """Replace a file as a whole, with its permissions; a link stays one.

    Raises:
        UserError: it cannot be written; the file is as it was.
    """
    target = path.resolve()
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), fix="make it writable") from None


def _mistakes(path: Path) -> list[UserError]:
    """What the loader refuses of a rewritten file."""
    try:
        raw, places = read_mapping(path, "recipe")
        if not is_space(raw):
            load_recipe(path)
        elif raw.get("recipe") is None:  # the recipe is given with --recipe
            check(Space, raw, places, str(path))
        else:
            load_search(path)
    except UserError as error:
        return error.errors if isinstance(error, UserErrors) else [error]
    return []
