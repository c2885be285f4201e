"""Users' own code in tests: packages written to a folder, and everything that their import changed put back."""

import importlib
import runpy
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scalablevit.config import extensions, packages
from scalablevit.config.promotion import Promotion
from scalablevit.config.recipe import Stage
from scalablevit.config.task_info import TASKS
from scalablevit.config.transforms import TRANSFORMS
from scalablevit.data.sources.opening import SOURCES

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_task"
"""Folder of the example package, of its recipe, search space and data."""
write_tag_data: Callable[..., None] = runpy.run_path(str(EXAMPLE / "tag_data.py"))["write_tag_data"]
"""Writes the data of the example's recipe below a root."""


@contextmanager
def packages_in(folder: Path) -> Iterator[Path]:
    """Let Python find the packages in a folder; afterwards they, and what they registered, are unknown again."""
    registries = (TASKS, SOURCES, TRANSFORMS, extensions.METRICS, extensions._sources_of, packages._imported)
    tables = [(table, dict(table)) for table in registries]
    fields = [(field, field.annotation) for field in (*Stage.model_fields.values(), Promotion.model_fields["metric"])]
    modules = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for table, before in tables:
            typing.cast("dict[object, object]", table).clear()
            typing.cast("dict[object, object]", table).update(before)
        for field, annotation in fields:
            field.annotation = annotation
        extensions.rebuild_schema()
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
                del sys.modules[name]


def write_package(folder: Path, name: str, **files: str) -> Path:
    """Write a package with modules of the given texts; `init` is its `__init__.py`. Return its folder."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module, text in files.items():
        (package / ("__init__.py" if module == "init" else f"{module}.py")).write_text(text)
    importlib.invalidate_caches()  # the folder may be newer than its cached listing
    return package
