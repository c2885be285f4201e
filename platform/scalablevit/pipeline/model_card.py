"""The model card of a registered version: its description in MLflow, for people who did not train it."""

import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scalablevit.config.commands import PROGRAM
from scalablevit.config.data import Data, LabelledImages
from scalablevit.config.errors import UserError
from scalablevit.config.root import is_default_tracking
from scalablevit.config.task import head_of
from scalablevit.config.task_info import task_info
from scalablevit.inspection.statistics_table import statistics_rows
from scalablevit.pipeline.plan_summary import starts_from
from scalablevit.pipeline.resolve import ResolvedStage
from scalablevit.report.findings import load_findings
from scalablevit.run_files import ENVIRONMENT, ERROR_ANALYSIS, RECIPE, REPORT, STATISTICS
from scalablevit.runs.result import StageResult, useless_note
from scalablevit.tracking.connection import SQLITE, mask, without_credentials
from scalablevit.tracking.records import VERSION_PLACE
from scalablevit.tracking.registry import LONGEST_DESCRIPTION

CLASSES = (12, 6, 3, 0)
"""Most rows of classes, tried in this order until the card is short enough."""
LONGEST_CELL = 60
"""Most characters of a cell; longer names of classes are cut."""
CELL_SEPARATOR = " | &emsp;"
"""Between the cells of a row: MLflow's page leaves no space between columns."""
LOWER_BOUND_SUFFIX = "_low95"
"""Suffix of a metric that is the lower end of another metric's interval."""


@dataclass(frozen=True)
class Registry:
    """Where the version is registered."""

    root: Path
    """The platform's root."""
    uri: str
    """MLflow's address; may hold a password, which is not shown."""

    @property
    def address(self) -> str:
        """Return MLflow's address without credentials."""
        return without_credentials(self.uri)

    @property
    def is_default(self) -> bool:
        """Return whether commands find the registry by the root alone."""
        return is_default_tracking(self.uri, self.root)


def model_card(
    recipe: str, resolved: ResolvedStage, finished: StageResult, local: Path, plots: Sequence[str], registry: Registry
) -> str:
    """Return the card in Markdown, at most `LONGEST_DESCRIPTION` characters.

    It has no image of the data and no name of a file of it. Of folders it has the path below the root, or the name
    alone: a reader may be at another machine, and a home folder names its owner.

    Args:
        recipe: name of the recipe.
        resolved: the stage.
        finished: its result.
        local: the run's folder on this machine.
        plots: artifacts of the run that are plots.
        registry: where the version is registered.
    """
    for classes in CLASSES:
        parts = (
            _what(recipe, _with_short_location(resolved, registry.root), finished, local),
            _data(resolved, classes, registry.root),
            _metrics(resolved, finished),
            _plots(finished, plots, registry.root),
            _limits(resolved, finished),
            _use(finished, registry),
        )
        card = mask("\n\n".join(parts), registry.uri)
        if len(card) <= LONGEST_DESCRIPTION:
            return card
    return card[: LONGEST_DESCRIPTION - 4] + "\n..."


def _what(recipe: str, resolved: ResolvedStage, finished: StageResult, local: Path) -> str:
    stage, head = resolved.stage, head_of(resolved.stage.task)
    return (
        f"**{finished.registered_as}** version {VERSION_PLACE}, registered as a candidate: {stage.task.kind}, "
        f"{len(finished.classes)} classes.\n\n"
        f"- Network: `{stage.model.name}`{f' with head `{head}`' if head else ''}{_cost(local)}\n"
        f"- Trained by stage `{resolved.name}` of recipe `{recipe}`, run `{finished.run_name}`: step {finished.step} "
        f"of {finished.last_step or finished.step}, from {starts_from(resolved)}"
    )


def _with_short_location(resolved: ResolvedStage, root: Path) -> ResolvedStage:
    """Return the stage with initial weights that are named by their registered version, or by `_short_path`."""
    weights = resolved.init_weights
    if weights is None:
        return resolved
    location = weights.version or _short_path(weights.location, root)
    return replace(resolved, init_weights=replace(weights, location=location))


def _short_path(location: str, root: Path) -> str:
    """Return the path below the root of what is inside it, the name alone of what is not, and an address as it is."""
    if "://" in location:
        return location
    path = Path(os.path.normpath(root / Path(location).expanduser()))
    return str(path.relative_to(root)) if root in path.parents else path.name


def _cost(local: Path) -> str:
    """Return the network's cost, which the error analysis has counted; empty where that failed."""
    try:
        findings = load_findings(local / ERROR_ANALYSIS)
    except UserError:
        return ""
    return (
        f", {findings.parameters / 1e6:.3g} million parameters, {findings.macs / 1e9:.3g} GMACs an image"
        if findings
        else ""
    )


def _data(resolved: ResolvedStage, classes: int, root: Path) -> str:
    data = resolved.stage.data
    origin = ", the built-in shapes" if data.shapes is not None else ""
    lines = [
        "## Data",
        f"`{data.source}` in `{_short_path(data.root, root)}`{origin}: {resolved.train_samples:,} training and "
        f"{resolved.val_samples:,} validation images, digest `{resolved.digest[:24]}`.",
    ]
    if resolved.statistics is None:
        names = ", ".join(_plain(name) for name in resolved.classes[:classes])
        return "\n\n".join([*lines, f"Classes: {names}{' ...' if len(resolved.classes) > classes else ''}"])
    # it would show names of files, which are private
    rows = [row for row in statistics_rows(resolved.statistics, classes) if not row[0].startswith("left out")]
    return "\n\n".join([*lines, _markdown_table(rows)])


def _metrics(resolved: ResolvedStage, finished: StageResult) -> str:
    metrics = finished.metrics
    names = [info.reported_as for info in task_info(resolved.stage.task.kind).metrics if info.reported_as in metrics]
    lower = {
        name.removesuffix(LOWER_BOUND_SUFFIX): metrics[name] for name in names if name.endswith(LOWER_BOUND_SUFFIX)
    }
    rows = [
        (_short(name), f"{metrics[name]:.4f}", f"from {lower[name]:.4f}" if name in lower else "-")
        for name in names
        if not name.endswith(LOWER_BOUND_SUFFIX)
    ]
    heading = ("metric", "value", "95 % interval")
    rendered = _markdown_table([row if lower else row[:2] for row in (heading, *rows)])
    # not always the best evaluation's: its checkpoint may be damaged
    chosen = f"at step {finished.step}, the best stored one by {_short(finished.metric)}"
    return f"## Metrics\n\nOn the validation images, {chosen}:\n\n{rendered}"


def _short(metric: str) -> str:
    return metric.removeprefix("val/")


def _plots(finished: StageResult, plots: Sequence[str], root: Path) -> str:
    files = ", ".join(f"`{name}`" for name in (*plots, RECIPE, ENVIRONMENT, STATISTICS))
    return (
        "## Plots and report\n\n"
        f"- Artifacts of the source run, `{finished.run_name}`: {files}\n"
        f"- Artifact of its parent run: `{REPORT}`\n"
        f"- Folder of the run: `{_short_path(finished.folder, root)}`"
    )


def _limits(resolved: ResolvedStage, finished: StageResult) -> str:
    statistics = resolved.statistics
    absent = statistics.absent("val") if statistics is not None else ()
    bad = finished.metrics.get("val/bad_samples", 0.0)
    shared = statistics.shared.count if statistics is not None and statistics.shared is not None else 0
    lines = [
        useless_note(finished.metric, finished.value, len(finished.classes)),
        f"{_sizes(resolved.stage.data)}; what is too small to be seen then is not found.",
        f"It knows its {len(finished.classes)} classes and nothing else.",
        "It was evaluated on the validation images above, which also chose the checkpoint, and on no others: other "
        "cameras, places and times are not tried.",
        f"Validation has nothing of {len(absent)} of the classes." if absent else "",
        f"{bad:,.0f} validation images could not be decoded: no metric has them." if bad else "",
        f"{shared:,} validation images are training images, too: the metrics are too good." if shared else "",
        f"It is a candidate until `{PROGRAM} promote` has compared it with the champion; tags `scalablevit.promotion*` "
        "say what came of that.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines if line)


def _sizes(data: Data) -> str:
    if isinstance(data, LabelledImages):
        side = data.image_size
        return f"Images are scaled to a short side of {data.eval_resize} pixels and cropped to {side} x {side}"
    return f"Images are scaled to a short side of {data.short_side} pixels, the long one {data.long_side} at most"


def _use(finished: StageResult, registry: Registry) -> str:
    model = f"models:/{finished.registered_as}/{VERSION_PLACE}"
    root, address = ("", str(registry.root)), _split_address(registry.address)
    option, argument = f"--root {_shell_word(*root)}", f"root={_python_text(*root)}"
    if not registry.is_default:
        setting = (f"tracking.uri={address[0]}", address[1])
        option, argument = _shell_word(*setting), _python_text(*setting)
    imports = "import os\n\n" if "os.path" in argument else ""
    return f"""## Use

With the package `{PROGRAM}`, in Python:

```python
{imports}import scalablevit as sv

model = sv.load_model("{model}", {argument})
print(model.predict(["photo.jpg"]))
```

Over HTTP, one column of image files in base64:

```sh
export MLFLOW_TRACKING_URI={_shell_word(*address)}
mlflow models serve -m {model} --env-manager local -p 5001
echo "{{\\"inputs\\": [\\"$(base64 -w0 photo.jpg)\\"]}}" |
  curl -H "Content-Type: application/json" -d @- http://127.0.0.1:5001/invocations
```

As ONNX, and measured on other data:

```sh
{PROGRAM} export {model} images/ --out onnx/ {option}
{PROGRAM} evaluate {model} data.root=/other/data {option}
```"""


def _split_address(address: str) -> tuple[str, str]:
    """Return MLflow's address in two parts, the second one the path of a local file; empty for a server."""
    before, sqlite, path = address.partition(f"{SQLITE}/")
    return (sqlite, path) if sqlite else (before, "")


def _shell_word(before: str, path: str) -> str:
    """Return a text that ends in a path as one word of a shell, with $HOME for the home folder."""
    rest = _below_home(path)
    if rest is None:
        return shlex.quote(before + path)
    return "".join((shlex.quote(before) if before else "", '"$HOME"', shlex.quote(rest) if rest else ""))


def _python_text(before: str, path: str) -> str:
    """Return a text that ends in a path as Python, with ~ for the home folder; a path alone may begin with it."""
    rest = _below_home(path)
    if rest is None:
        return _literal(before + path)
    short = _literal(f"~{rest}")
    return f"{_literal(before)} + os.path.expanduser({short})" if before else short


def _below_home(path: str) -> str | None:
    """Return what follows the home folder in a path; None outside it."""
    home = os.path.expanduser("~")  # noqa: PTH111  # `Path.home()` raises where there is none
    homes = [folder for folder in (home, os.path.realpath(home)) if path == folder or path.startswith(f"{folder}/")]
    return path[len(homes[0]) :] if homes else None


def _literal(text: str) -> str:
    """Return a text as Python writes it in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {CELL_SEPARATOR.join(_plain(cell) for cell in row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def _plain(text: str) -> str:
    """Return a text, cut to `LONGEST_CELL`, with Markdown's characters escaped: names of classes may have any."""
    short = text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."
    return "".join(f"\\{char}" if char in "\\`*_[]<>|!#" else char for char in short)
