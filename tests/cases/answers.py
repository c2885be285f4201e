"""What the commands answer to a case's recipe or search space: their exit code and all that they print."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scalablevit.cli import check_data, main
from scalablevit.cli.exit_codes import run_command
from scalablevit.cli.tree import parse
from scalablevit.config.space_loading import load_search
from scalablevit.pipeline import plan_summary, resolve


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a command."""

    code: int
    text: str
    """Standard output and standard error."""


def dry_run(recipe: Path, root: Path, *overrides: str) -> Answer:
    """Return the answer of `pipelines/full.py --dry-run`, without the cost of the model."""
    with pytest.MonkeyPatch.context() as patch:
        _leave_models_out(patch)
        options = ["--recipe", str(recipe), "--root", str(root), "--dry-run", *overrides]
        return _answer(lambda: main("full", options))


def check(recipe: Path, root: Path, *overrides: str) -> Answer:
    """Return the answer of `pipelines/check_data.py`."""
    options = ["--recipe", str(recipe), "--root", str(root), *overrides]
    return _answer(lambda: run_command(lambda: check_data.run(parse("check-data", options))))


def search(space: Path, root: Path) -> Answer:
    """Return the answer of `pipelines/tune.py --dry-run` up to its plan, for which torch and Ray would be loaded."""

    def check_search() -> int:
        search = load_search(space, note=print)
        resolve.check_metric(search, resolve.resolve(search.recipe, root, [search.stage])[-1])
        return 0

    return _answer(lambda: run_command(check_search))


def _leave_models_out(patch: pytest.MonkeyPatch) -> None:
    """Loading torch takes seconds and building a model another one, and no case is about one."""
    patch.setattr(plan_summary, "model_facts", lambda _: {"model": "", "automatic": "", "macs_per_pixel": "0"})


def _answer(command: Callable[[], int]) -> Answer:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = command()
    return Answer(code, printed.getvalue())
