"""Recipe files: write a first one, list the shipped ones, print their schema, or rewrite old ones."""

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from scalablevit.cli.arguments import add_imports, add_verb
from scalablevit.cli.json_output import add_json, print_document, stdout_to_stderr
from scalablevit.cli.new_recipe import template_names, write_new_recipe
from scalablevit.config.checking import check
from scalablevit.config.errors import UserError, raise_all
from scalablevit.config.json_schema import recipe_schema, schema_text, space_schema
from scalablevit.config.loading import drop_unknown_kinds, load_recipe, read_mapping
from scalablevit.config.rewriting import Change, is_space, upgrade_text
from scalablevit.config.shipped import RECIPES, SPACES, shipped_files
from scalablevit.config.space import Space
from scalablevit.config.space_loading import load_search
from scalablevit.config.upgrade import VERSION
from scalablevit.config.user_code import import_user_code
from scalablevit.io import sync_folder, written_part
from scalablevit.run_files import BASE_RECIPE, SPACE, STATUS

EPILOG = f"""\
new writes a first recipe for one's own data, and the JSON schema of recipes next to it: editors that know YAML schemas
then complete keys and mark mistakes. schema prints that schema, or the one of search spaces. The schema knows the kinds
of task and source that your own package registers if --imports names the package.

list names what can be given as --recipe NAME and --space NAME, with what each is for.

upgrade rewrites the files of recipes and search spaces in place, in the keys of version {VERSION}; comments, order and
formatting stay, and each change is printed with its line in the file as it was. When one of the files cannot be
upgraded or there is no room for its new content, none is changed; an error at the replacing itself names the files that
were replaced before. Afterwards all files are checked as they are before a training, and the mistakes that remain are
reported (not with --dry-run).

Exit codes: 0 done, or nothing to do; 2 a file cannot be upgraded, or mistakes remain."""


@dataclass(frozen=True)
class _PendingUpgrade:
    """A file to rewrite, its new content, and what changes."""

    path: Path
    content: bytes
    changes: list[Change]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = add_verb(verbs, "new", "write a first recipe for your data, with its JSON schema")
    new.add_argument(
        "template",
        choices=template_names(),
        metavar="WHAT",
        help="template: pretrain or fine_tune (classification), segment, detect",
    )
    new.add_argument("file", nargs="?", type=Path, default=Path("recipe.yaml"), metavar="FILE",
                     help="file to write; must not be there yet (default: recipe.yaml)")  # fmt: skip
    add_imports(new, "so that the schema has the kinds that it registers")
    schema = add_verb(verbs, "schema", "print the JSON schema of recipes")
    add_imports(schema, "so that the schema has the kinds that it registers")
    schema.add_argument("--space", action="store_true", help="print the schema of search spaces")
    add_json(add_verb(verbs, "list", "name the shipped recipes and search spaces"))
    upgrade = add_verb(verbs, "upgrade", f"rewrite files of version 1 in the keys of version {VERSION}")
    upgrade.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recipe or search space")
    upgrade.add_argument("--dry-run", action="store_true", help="print the changes, write nothing")


def run(options: argparse.Namespace) -> int:
    """Run the chosen verb; see `add_arguments`.

    Raises:
        UserError: a file cannot be upgraded (then no file is changed) or written, or has mistakes after the upgrade; or
            as `import_user_code`.
    """
    if options.verb in ("new", "schema"):
        with stdout_to_stderr(True):  # what that code prints is no schema
            import_user_code(options.imports, where="--imports")
    if options.verb == "new":
        return write_new_recipe(options.template, options.file, options.imports)
    if options.verb == "schema":
        print(schema_text(space_schema() if options.space else recipe_schema()), end="")
        return 0
    if options.verb == "list":
        return _list_json() if options.json else _list()
    return _upgrade(options.files, dry_run=options.dry_run)


def _list() -> int:
    for what, folder in (("recipe", RECIPES), ("space", SPACES)):
        print(f"--{what} NAME, of the files in {folder}:")
        files = shipped_files(folder)
        width = max(map(len, files), default=0)
        print("\n".join(f"  {name:<{width}}  {_summary(file)}" for name, file in files.items()))
    return 0


def _list_json() -> int:
    from scalablevit.cli.documents import RecipeList, Shipped

    def shipped(folder: Path) -> tuple[Shipped, ...]:
        files = shipped_files(folder).items()
        return tuple(Shipped(name=name, file=str(file), summary=_summary(file)) for name, file in files)

    print_document(RecipeList(recipes=shipped(RECIPES), spaces=shipped(SPACES)))
    return 0


def _summary(file: Path) -> str:
    """Return the comment at the beginning of a file, up to its first full stop or the colon before an example."""
    lines = takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    comment = "\n".join(line.removeprefix("#").strip() for line in lines)
    return re.split(r"\.\s|\.$|:\n", comment, maxsplit=1)[0].replace("\n", " ")


def _upgrade(files: Sequence[Path], *, dry_run: bool) -> int:
    """Rewrite files in the current version's keys; return the exit code.

    Raises:
        UserError: one of them cannot be upgraded, and none is changed; as `_replace`; or mistakes remain.
    """
    upgrades, errors = [], list[UserError]()
    for path in files:
        try:
            upgrades.append(_prepare(path))
        except UserError as error:
            errors.append(error)
    raise_all(errors)
    if not dry_run:
        _replace([upgraded for upgraded in upgrades if upgraded.changes])
    for upgraded in upgrades:
        for change in upgraded.changes:
            print(f"{upgraded.path}:{change.line}: {change.what}")
        if not upgraded.changes:
            print(f"{upgraded.path}: already version {VERSION}")
    if dry_run:
        print("dry run: nothing was written")
        return 0
    raise_all([error for upgraded in upgrades for error in _mistakes(upgraded.path)])
    return 0


def _prepare(path: Path) -> _PendingUpgrade:
    """Return the upgraded content of a file, without writing it.

    Raises:
        UserError: it cannot be read, it belongs to a search, or as `upgrade_text`.
    """
    if path.name in (SPACE, BASE_RECIPE) and (path.parent / STATUS).is_file():
        raise UserError("belongs to a search, which is read in any version", where=str(path),
                        fix="leave it as it is, or upgrade a copy of it")  # fmt: skip
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="check the path") from None
    changed, changes = upgrade_text(text, str(path))
    return _PendingUpgrade(path, changed.encode("utf-8"), changes)


def _replace(upgrades: Sequence[_PendingUpgrade]) -> None:
    """Replace files as wholes, with their permissions, once all can be written; links stay links.

    Raises:
        UserError: one cannot be written; it names those that were replaced before.
    """
    with ExitStack() as parts:
        written, replaced = [], list[str]()
        for upgraded in upgrades:
            with _explain_failure(upgraded.path):
                part = parts.enter_context(written_part(upgraded.path.resolve(), upgraded.content))
                written.append((upgraded.path, part))
        for path, part in written:
            with _explain_failure(path, replaced):
                part.replace(path.resolve())
                replaced.append(str(path))
        for folder in {path.resolve().parent for path, _ in written}:
            with suppress(OSError):  # not every file system can do it for a folder
                sync_folder(folder)


@contextmanager
def _explain_failure(path: Path, replaced: Sequence[str] = ()) -> Iterator[None]:
    """Turn an OSError within the block into a UserError that names the file, and those that were replaced before."""
    try:
        yield
    except OSError as error:
        fix = "make its folder writable" if isinstance(error, PermissionError) else "remove the cause, and try again"
        what = f"cannot be written: {error.strerror}" + f"; replaced already: {', '.join(replaced)}" * bool(replaced)
        raise UserError(what, where=str(path), fix=fix) from None


def _mistakes(path: Path) -> list[UserError]:
    """Return the errors that the loader has for a rewritten file."""
    try:
        raw, locations = read_mapping(path, "recipe")
        if not is_space(raw):
            load_recipe(path)
        elif raw.get("recipe") is None:  # the recipe is given with --recipe
            check(Space, raw, locations, str(path))
        else:
            load_search(path)
    except UserError as error:
        return drop_unknown_kinds(error)
    return []
