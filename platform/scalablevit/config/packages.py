"""Python packages: names of their modules, which files belong to one, their content sum, and what of it is imported."""

import hashlib
import re
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from scalablevit.config.errors import UserError
from scalablevit.io import sha256_of

PLATFORM = __name__.partition(".")[0]
"""Name of our own package."""
MAX_NAME_LENGTH = 200
"""Most characters of a module's name."""
DEPENDENCIES = frozenset({
    "albumentations", "cv2", "faster_coco_eval", "jinja2", "matplotlib", "mlflow", "mmcv", "mmengine", "mmseg", "numpy",
    "onnx", "onnxruntime", "optuna", "pandas", "PIL", "psutil", "pyarrow", "pydantic", "ray", "safetensors", "scipy",
    "simplejpeg", "timm", "torch", "torchvision", "tqdm", "yaml",
})  # fmt: skip
"""Packages that the platform itself imports: one of them under `imports` would hash gigabytes and register nothing."""


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

    Its package is being imported, so the files are noted as those that this process runs.

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
class ImportedPackage:
    """A package as this process imported it; its files may change afterwards."""

    module: ModuleType
    digest: str
    """Its `content_sum`."""
    files: dict[str, str]
    """SHA-256 of each file, by relative path."""

    def changed_files(self, package: Path) -> list[str]:
        """Return the relative paths of files that are new, gone or different now, sorted.

        Args:
            package: its folder.
        """
        now = _file_sums(package)
        return sorted(name for name in now.keys() | self.files.keys() if now.get(name) != self.files.get(name))


_imported: dict[str, ImportedPackage] = {}
"""Packages that this process has imported, by name."""


def note_imported(name: str) -> None:
    """Keep the sums of a package's files as those of the code in this process, if it is imported and has none yet.

    Args:
        name: of the package; nothing is kept of a single module, nor of what the platform depends on.
    """
    module = None if name in DEPENDENCIES else sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is not None and file is not None and hasattr(module, "__path__") and imported_package(name) is None:
        folder = Path(file).resolve().parent
        _imported[name] = ImportedPackage(module, package_sum(folder), _file_sums(folder))


def imported_package(name: str) -> ImportedPackage | None:
    """Return what `note_imported` kept of a package; None: nothing, or it is not imported any more."""
    kept = _imported.get(name)
    return kept if kept is not None and kept.module is sys.modules.get(name) else None


def _file_sums(package: Path) -> dict[str, str]:
    return {path.relative_to(package).as_posix(): sha256_of(path) for path in package_files(package)}


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
    digest = hashlib.sha256()
    for path in package_files(package, excluded):
        content = path.read_bytes()
        # The length keeps (name, content) pairs apart: no two different trees feed the same bytes.
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()
