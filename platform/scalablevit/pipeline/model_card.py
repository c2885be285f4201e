"""The model card of a registered version: its description in MLflow, for people who did not train it."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
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
from scalablevit.runs.result import StageResult
from scalablevit.tracking.connection import mask, without_credentials
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

    It has no image of the data and no name of a file of it.

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
            _what(recipe, resolved, finished, local),
            _data(resolved, classes),
            _metrics(resolved, finished),
            _plots(finished, plots),
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


def _data(resolved: ResolvedStage, classes: int) -> str:
    data = resolved.stage.data
    origin = ", the built-in shapes" if data.shapes is not None else ""
    lines = [
        "## Data",
        f"`{data.source}` in `{data.root}`{origin}: {resolved.train_samples:,} training and {resolved.val_samples:,} "
        f"validation images, digest `{resolved.digest[:24]}`.",
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
    return f"## Metrics\n\nOn the validation images, at the step with the best {_short(finished.metric)}:\n\n{rendered}"


def _short(metric: str) -> str:
    return metric.removeprefix("val/")


def _plots(finished: StageResult, plots: Sequence[str]) -> str:
    files = ", ".join(f"`{name}`" for name in (*plots, RECIPE, ENVIRONMENT, STATISTICS))
    return (
        "## Plots and report\n\n"
        f"- Artifacts of the source run, `{finished.run_name}`: {files}\n"
        f"- Artifact of its parent run: `{REPORT}`\n"
        f"- Where it was trained: `{finished.folder}`"
    )


def _limits(resolved: ResolvedStage, finished: StageResult) -> str:
    statistics = resolved.statistics
    absent = statistics.absent("val") if statistics is not None else ()
    shared = statistics.shared.count if statistics is not None and statistics.shared is not None else 0
    lines = [
        f"{_sizes(resolved.stage.data)}; what is too small to be seen then is not found.",
        f"It knows its {len(finished.classes)} classes and nothing else.",
        "It was evaluated on the validation images above, which also chose the checkpoint, and on no others: other "
        "cameras, places and times are not tried.",
        f"Validation has nothing of {len(absent)} of the classes." if absent else "",
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
    option = f"--root {shlex.quote(str(registry.root))}"
    argument = f"root={_literal(str(registry.root))}"
    if not registry.is_default:
        option = shlex.quote(f"tracking.uri={registry.address}")
        argument = _literal(f"tracking.uri={registry.address}")
    return f"""## Use

With the package `{PROGRAM}`, in Python:

```python
import scalablevit as sv

model = sv.load_model("{model}", {argument})
print(model.predict(["photo.jpg"]))
```

Over HTTP, one column of image files in base64:

```sh
export MLFLOW_TRACKING_URI={shlex.quote(registry.address)}
mlflow models serve -m {model} --env-manager local -p 5001
echo "{{\\"inputs\\": [\\"$(base64 -w0 photo.jpg)\\"]}}" |
  curl -H "Content-Type: application/json" -d @- http://127.0.0.1:5001/invocations
```

As ONNX, and measured on other data:

```sh
{PROGRAM} export {model} images/ --out onnx/ {option}
{PROGRAM} evaluate {model} data.root=/other/data {option}
```"""


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
