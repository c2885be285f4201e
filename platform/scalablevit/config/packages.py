"""Python packages: names of their modules, which files belong to one, their content sum, and what of it is imported."""

import hashlib
import json
import re
import sys
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from types import ModuleType
from typing import Any

from scalablevit.config.errors import UserError

PLATFORM = __name__.partition(".")[0]
"""Name of our own package."""
MAX_NAME_LENGTH = 200
"""Most characters of a module's name."""
DEPENDENCIES = frozenset({
    "albumentations", "cv2", "hotcoco", "jinja2", "matplotlib", "mlflow", "mmcv", "mmengine", "mmseg", "numpy",
    "onnx", "onnxruntime", "optuna", "pandas", "PIL", "psutil", "pyarrow", "pydantic", "ray", "safetensors", "scipy",
    "simplejpeg", "timm", "torch", "torchvision", "tqdm", "yaml",
})  # fmt: skip
"""Packages that the platform itself imports: one of them under `imports` would hash gigabytes and register nothing."""
COMPILED = re.compile(r"\.(so(\.\d+)*|pyd|dll|dylib)$")
"""End of the name of a file of compiled code, such as `.so.5`, which runs on one kind of machine alone."""


def top_level(module: str) -> str:
    """Return the name of the package that a module belongs to, such as `a` of `a.b.c`."""
    return module.partition(".")[0]


def refuse_other_modules(name: str) -> None:
    """Refuse the name of a module that cannot be a user's own, by the name alone.

    Raises:
        ValueError: it is no plain dotted name, or one of Python's, of ours or of what we depend on.
    """
    top = top_level(name)
    if len(name) > MAX_NAME_LENGTH or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name, re.ASCII):
        raise ValueError(f"{name[:MAX_NAME_LENGTH]!r} is no name of a module; write one such as my_package.tasks")
    if top == PLATFORM:
        raise ValueError(f"{name} is the platform's own code, which is always imported; leave it out")
    if top in sys.stdlib_module_names:
        raise ValueError(f"{name} belongs to Python itself; name a package of your own")
    if top in DEPENDENCIES:
        raise ValueError(f"{name} is imported by the platform itself; name a package of your own, or leave it out")


def refuse_unimportable(registered: Any, where: str) -> None:
    """Refuse a function or class that is registered and that other processes cannot import as a user's own.

    Its package is being imported, so the files are noted as those that this process runs: whether a recipe names it
    under `imports` is not known yet.

    Args:
        registered: the function or class.
        where: what errors name as the place of the registration.

    Raises:
        UserError: it is defined in a script or notebook, in our package, or within a function.
    """
    module, name = registered.__module__, registered.__qualname__
    if top_level(module) in ("__main__", PLATFORM) or not hasattr(sys.modules[module], name.partition(".")[0]):
        raise UserError(
            f"no worker can import {module}.{name} as yours",
            where=where,
            fix="define it at the top of a module of your own package, which the recipe names under imports",
        )
    note_imported(top_level(module))


@dataclass(frozen=True)
class PackageContent:
    """What a package consists of, at the time when it was read."""

    digest: str
    """Its `package_sum`."""
    files: dict[str, str]
    """SHA-256 of each file, by relative path."""
    requirements: tuple[str, ...] = ()
    """`name==version` of what pip installed it from, if it has compiled code; else empty."""

    @property
    def portable_sum(self) -> str:
        """Return a sum that is equal wherever the same version is installed: that of a model.

        Compiled code has a build of its own for each kind of machine and version of Python: instead of those files the
        requirements count. A package without compiled code has its `digest`.
        """
        if not self.requirements:
            return self.digest
        portable = sorted((name, digest) for name, digest in self.files.items() if not is_compiled(name))
        return hashlib.sha256(json.dumps([self.requirements, portable]).encode()).hexdigest()

    def changed_files(self, now: "PackageContent") -> list[str]:
        """Return the relative paths of files that are new, gone or different now, sorted."""
        names = now.files.keys() | self.files.keys()
        return sorted(name for name in names if now.files.get(name) != self.files.get(name))


_imported: dict[str, tuple[ModuleType, PackageContent]] = {}
"""Packages that this process has imported, by name; their files may have changed since."""


def note_imported(name: str) -> None:
    """Keep what a package consists of as the code in this process, if it is imported and nothing is kept yet.

    Args:
        name: of the package; nothing is kept of a single module, of what the platform depends on, and of a package with
            a file that cannot be read, which is refused where a recipe names it.
    """
    module = None if name in DEPENDENCIES else sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is not None and file is not None and hasattr(module, "__path__") and imported_package(name) is None:
        with suppress(OSError):
            _imported[name] = (module, read_package(name, Path(file).resolve().parent))


def imported_package(name: str) -> PackageContent | None:
    """Return what `note_imported` kept of a package; None: nothing, or it is not imported any more."""
    module, content = _imported.get(name, (None, None))
    return content if module is not None and module is sys.modules.get(name) else None


def read_package(name: str, folder: Path) -> PackageContent:
    """Return what a package consists of now.

    Args:
        name: of the package.
        folder: of the package.

    Raises:
        OSError: a file cannot be read.
    """
    files: dict[str, str] = {}
    digest = _package_sum(folder, (), files)
    return PackageContent(digest, files, requirements_of(name) if any(map(is_compiled, files)) else ())


def is_compiled(name: str) -> bool:
    """Return whether a file is compiled code, by its name."""
    return COMPILED.search(name) is not None


def requirements_of(name: str) -> tuple[str, ...]:
    """Return `name==version` of the distributions from which pip installed a package; empty: it did not."""
    names = sorted(set(packages_distributions().get(name, ())))
    return tuple(f"{name}=={distribution(name).version}" for name in names)


def is_from_index(requirement: str) -> bool:
    """Return whether pip installed a distribution from an index, not from a file, an address or a repository.

    Args:
        requirement: its `name==version`.
    """
    return distribution(requirement.partition("==")[0]).read_text("direct_url.json") is None


def package_files(package: Path, excluded: Collection[str] = ()) -> list[Path]:
    """Return a package's files, code and data, sorted by relative path.

    Byte code and hidden files are no part of it: neither travels with a job.

    Args:
        package: its folder.
        excluded: further names of folders and files that are left out.
    """
    files = []
    for path in package.rglob("*"):
        parts = path.relative_to(package).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if not hidden and not set(excluded).intersection(parts) and path.is_file():
            files.append(path)
    return sorted(files, key=lambda path: path.relative_to(package).as_posix())


def package_sum(package: Path, excluded: Collection[str] = ()) -> str:
    """Return the SHA-256, in hexadecimal, of the relative paths and contents of a package's files.

    Args:
        package: its folder; its location makes no difference.
        excluded: as for `package_files`.
    """
    return _package_sum(package, excluded, {})


def _package_sum(package: Path, excluded: Collection[str], sums: dict[str, str]) -> str:
    """Return what `package_sum` returns, and add the SHA-256 of each file to `sums`, by relative path."""
    digest = hashlib.sha256()
    for path in package_files(package, excluded):
        content = path.read_bytes()
        name = path.relative_to(package).as_posix()
        sums[name] = hashlib.sha256(content).hexdigest()
        # The length keeps (name, content) pairs apart: no two different trees feed the same bytes.
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
