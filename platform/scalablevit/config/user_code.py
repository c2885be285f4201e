"""Users' own packages, which a recipe names under `imports`: found without importing, hashed, and imported."""

import importlib
import importlib.util
import json
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

from scalablevit.config.errors import UserError
from scalablevit.config.packages import (
    PackageContent,
    imported_package,
    is_compiled,
    note_imported,
    package_files,
    read_package,
    refuse_other_modules,
    requirements_of,
    top_level,
)
from scalablevit.config.recipe import Recipe, Stage
from scalablevit.text import and_more

KEY = "imports"
SUMS = "user_code"
"""Key of a model's `config.json`: the `portable_sum` of each package of its stage's `imports`, by name."""
SHOWN_SUM = 12
"""Characters of a package's SHA-256 in messages."""
NAMED_FILES = 3
"""Most changed files that an error names."""
_failed: set[Path] = set()
"""Folders of packages of which this process has dropped modules, since a later one could not be imported."""


@dataclass(frozen=True)
class UserPackage:
    """A user's package as this machine has it."""

    name: str
    """Name of the top-level package."""
    folder: Path
    installed: bool
    """Whether it is among the interpreter's installed packages, which every node must have; else it is sent with a
    job."""
    compiled: str = ""
    """Name of one of its files of compiled code, which run on one kind of machine alone; empty: it has none."""

    def content_sum(self) -> str:
        """Return the SHA-256, in hexadecimal, of its files' names and contents.

        Raises:
            UserError: as `content`.
        """
        return self.content().digest

    def content(self) -> PackageContent:
        """Return what it consists of now.

        Raises:
            UserError: a file cannot be read.
        """
        try:
            return read_package(self.name, self.folder)
        except OSError as error:
            raise UserError(
                f"{self.name} has a file that cannot be read: {error}",
                where=str(self.folder),
                fix="make it readable, or take it out of the package",
            ) from None


def imports_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the modules that the stages of a recipe name, once each."""
    return tuple(dict.fromkeys(name for stage in recipe.stages.values() for name in stage.imports))


def find_packages(names: Iterable[str], where: str = KEY) -> list[UserPackage]:
    """Find the packages that modules belong to, once each, without importing anything.

    Args:
        names: dotted names of modules.
        where: what errors name as the place of the names.

    Raises:
        UserError: a module is not there, or is no part of a package of the user's own.
    """
    packages: dict[str, UserPackage] = {}
    importlib.invalidate_caches()  # a package may be newer than the cached listing of its folder
    for name in names:
        top, _, inner = name.partition(".")
        if top not in packages:
            packages[top] = _find_package(top, where)
        _check_module(packages[top], inner, where)
    return list(packages.values())


def package_sums(names: Iterable[str], where: str = KEY) -> dict[str, str]:
    """Return the SHA-256 of each package that modules belong to, by the package's name.

    For a package that this process has imported it is the sum at that time, since that code runs, whatever its files
    are now.

    Args:
        names: as for `find_packages`.
        where: as for `find_packages`.

    Raises:
        UserError: as `find_packages`.
    """
    return {name: content.digest for name, content in package_contents(names, where).items()}


def package_contents(names: Iterable[str], where: str = KEY) -> dict[str, PackageContent]:
    """Return what each package that modules belong to consists of, by the package's name.

    As in `package_sums`, what this process has imported counts.

    Args:
        names: as for `find_packages`.
        where: as for `find_packages`.

    Raises:
        UserError: as `find_packages`.
    """
    packages = find_packages(names, where)
    return {package.name: imported_package(package.name) or package.content() for package in packages}


def import_user_code(
    names: Sequence[str], expected: Mapping[str, str] | None = None, where: str = KEY, *, for_reading: bool = False
) -> None:
    """Import users' modules, so that what they register is known.

    All are found, and their sums compared, before the first one is imported.

    Args:
        names: dotted names of modules, in the order of importing.
        expected: SHA-256 (a `digest` or a `portable_sum`) that each of their packages must have, by name; None: any.
        where: what errors name as the place of the names.
        for_reading: the stage is only read, so files may have changed since they were imported.

    Raises:
        UserError: a module is not there, its package has another sum or has changed since it was imported, or the
            module raises an exception.
    """
    if not names:
        return
    packages = find_packages(names, where)
    for package in packages:
        now = package.content()
        if expected is not None and expected.get(package.name) not in (now.digest, now.portable_sum):
            raise _other_code(package, expected.get(package.name), now, where)
        imported = imported_package(package.name)
        if imported is not None and imported.digest != now.digest and not for_reading:
            raise _changed_code(package, imported.changed_files(now))
    before = set(sys.modules)
    try:
        for name in names:
            _import(name, next(package for package in packages if package.name == top_level(name)))
    except UserError as error:
        raise _drop_modules(packages, before, error) from None
    for package in packages:
        note_imported(package.name)


def import_stored_code(config: Mapping[str, Any], where: str) -> None:
    """Import the users' code that a stored model was trained with from this machine.

    Args:
        config: the model's `config.json`, whose `user_code` has the sums.
        where: the model, for errors.

    Raises:
        UserError: as `import_user_code`; nothing of the code that is stored with the model runs.
    """
    import_user_code(stored_names(config["stage"], where), stored_sums(config.get(SUMS), where), where)


def stored_sums(raw: object, where: str) -> dict[str, str]:
    """Return the packages' sums in a model's `config.json`, which may be of any origin; empty where it has none.

    Args:
        raw: its `user_code`.
        where: its file, for errors.

    Raises:
        UserError: it is no mapping of texts to texts.
    """
    raw = raw or {}
    if not isinstance(raw, dict) or not all(isinstance(text, str) for pair in raw.items() for text in pair):
        raise UserError(f"{SUMS} are no content sums by package", where=where, fix="restore the file from a copy")
    return dict(raw)


def stage_from_json(text: str, expected: Mapping[str, str] | None = None) -> Stage:
    """Return a stage that another process sent, after importing its users' code.

    Args:
        text: the stage as JSON.
        expected: SHA-256 that each package of its code must have, by name; None: any.

    Raises:
        UserError: as `import_user_code`.
    """
    import_user_code(stored_names(json.loads(text), KEY), expected)
    return Stage.model_validate_json(text)


def stored_names(sections: Mapping[str, Any], where: str) -> list[str]:
    """Return the modules that the plain sections of a stage, which may be of any origin, name under `imports`.

    Args:
        sections: of the stage.
        where: their file, for errors.

    Raises:
        UserError: they are no names of users' modules.
    """
    names = sections.get(KEY, ())
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{KEY} are no names of modules", where=where, fix="restore the file from a copy")
    for name in names:
        try:
            refuse_other_modules(name)
        except ValueError as error:
            raise UserError(str(error), where=where, fix="restore the file from a copy") from None
    return list(names)


def _find_package(name: str, where: str) -> UserPackage:
    """Find a top-level package, without importing it.

    Raises:
        UserError: there is none, it is no package that can be sent with a job, or it has compiled code and pip has not
            installed it.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a broken finder; a module without a spec, such as __main__
        spec = None
    if spec is None:
        raise UserError(f"there is no package {name}", where=where, fix=_advice(name))
    if spec.submodule_search_locations is None:
        raise UserError(
            f"{name} is a single module ({spec.origin}), and only packages travel with a job",
            where=where,
            fix=f"make it a package: a folder {name} with its code in __init__.py",
        )
    if spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(
            f"{name} is no package but a folder without code of its own, or within an archive: "
            f"{', '.join(spec.submodule_search_locations)}",
            where=where,
            fix="add an __init__.py to your package's folder; or make sure that this name means your package",
        )
    folder = Path(spec.origin).resolve().parent
    if folder.name != name:
        raise UserError(
            f"{name} is in a folder of another name, {folder}, under which it would travel",
            where=where,
            fix=f"name the folder {name}",
        )
    installed = any(folder.is_relative_to(installed) for installed in _installed_folders())
    compiled = next((file.name for file in package_files(folder) if is_compiled(file.name)), "")
    package = UserPackage(name, folder, installed, compiled)
    if compiled and not (installed and requirements_of(name)):
        raise UserError(
            f"{name} has compiled code ({compiled}), which may not run on other machines",
            where=where,
            fix="install the package on every node (pip install, not -e); only pure Python travels with a job or model",
        )
    return package


def _advice(name: str) -> str:
    """Return what to do about a package that is not found."""
    if (Path(name) / "__init__.py").is_file():
        return f"it is in the current folder, where Python does not look: PYTHONPATH={Path.cwd()}, or pip install it"
    return "check its name; put the folder that holds the package on PYTHONPATH, or pip install it (-e: as it is)"


def _installed_folders() -> set[Path]:
    """Return the folders of the interpreter's installed packages."""
    paths = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    return {Path(path).resolve() for path in (*paths, *site.getsitepackages())}


def _check_module(package: UserPackage, inner: str, where: str) -> None:
    """Refuse a module whose file is not in its package.

    Raises:
        UserError: it is not there.
    """
    if not inner:
        return
    path = package.folder.joinpath(*inner.split("."))
    files = [path.with_name(path.name + suffix) for suffix in all_suffixes()]
    if not path.is_dir() and not any(file.is_file() for file in files):
        raise UserError(
            f"package {package.name} has no module {inner}",
            where=where,
            fix=f"make {package.folder.name}/{'/'.join(inner.split('.'))}.py, or correct the name",
        )


def _drop_modules(packages: Sequence[UserPackage], before: set[str], error: UserError) -> UserError:
    """Drop the packages' modules that were imported before one failed, and return the error.

    Else the next attempt would have these as they were, and the rest as it is then. What they did outside of Python's
    modules stays, such as an operator that torch knows: the error of a second attempt names that as a reason.
    """
    own = {package.name: package.folder for package in packages}
    again = _failed.intersection(own.values())
    for name in set(sys.modules) - before:
        if top_level(name) in own:
            del sys.modules[name]
            _failed.add(own[top_level(name)])
    if not again:
        return error
    advice = "if it says that something is there already, start a new process: modules have run twice in this one"
    return UserError(error.what, where=error.where, fix=f"{error.fix}; {advice}")


def _other_code(package: UserPackage, expected: str | None, now: PackageContent, where: str) -> UserError:
    origin = f"with the content sum {expected[:SHOWN_SUM]}" if expected else "without a content sum"
    version = f", {' and '.join(now.requirements)}," if now.requirements else ""
    model = where.startswith("models:/")
    if now.requirements:
        where_it_is = "; the model's requirements name it" if model else ""
    else:
        where_it_is = ": a registered model has a copy in its folder code, which never runs by itself" if model else ""
    return UserError(
        f"this was made by {package.name} {origin}, and {package.folder}{version} has {now.portable_sum[:SHOWN_SUM]}",
        where=where,
        fix=f"put that version of {package.name} here (PYTHONPATH, pip install){where_it_is}",
    )


def _changed_code(package: UserPackage, changed: Sequence[str]) -> UserError:
    names = f"{', '.join(changed[:NAMED_FILES])}{and_more(len(changed), NAMED_FILES)}"
    return UserError(
        f"the files of {package.name} have changed since this process imported it: {names}",
        where=str(package.folder),
        fix="start again in a new process (a notebook: restart its kernel)",
    )


def _import(name: str, package: UserPackage) -> None:
    """Import a module.

    Raises:
        UserError: it raises an exception; the error names file and line of the user's code.
    """
    try:
        importlib.import_module(name)
    except UserError as error:  # raised by a registration
        location = _location_in(package, error)
        raise UserError(error.what, where=": ".join(filter(None, [location, error.where])), fix=error.fix) from None
    except (Exception, SystemExit) as error:
        what = f"importing {name} raises {type(error).__name__}" + (f": {error}" if str(error) else "")
        raise UserError(
            what, where=_location_in(package, error), fix="correct that code; nothing was started"
        ) from None


def _location_in(package: UserPackage, error: BaseException) -> str:
    """Return file and line of the package's code that raised an exception."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).resolve().is_relative_to(package.folder)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(package.folder)
