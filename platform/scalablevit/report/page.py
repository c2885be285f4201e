"""A job's report: one HTML page without any other file."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scalablevit.config.task_info import TaskInfo, task_info
from scalablevit.report.findings import Findings
from scalablevit.report.overview import Overview, WorkTime
from scalablevit.tasks.metric_names import class_metric_names
from scalablevit.viz.charts import LINES, PAGE_INK, Line, line_chart
from scalablevit.viz.curves import Rows, points
from scalablevit.viz.palette import class_hex

TEMPLATE = "page.html"
MATRIX_CLASSES = 20
"""Largest number of classes of a confusion matrix; a larger one cannot be read."""
CONFUSIONS = 20
"""Number of the most frequent confusions, which are shown instead of a larger matrix."""
CLASSES, LOWEST = 20, 10
"""Up to `CLASSES` classes all have a row in a table of metrics; of more, the `LOWEST` with the lowest values do, and
the others are folded."""
NOTHING = ("", "0", "0 (0 %)")
"""Cells of the table of data that mean no data."""
MIME = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Part:
    """A part of a stage's time."""

    name: str
    seconds: float
    text: str
    """The same time for people, such as `3.2 min`."""


@dataclass(frozen=True)
class Stage:
    """The content of the section on a stage."""

    name: str
    kind: str
    """Kind of the stage's task, such as `detection`."""
    model: str
    state: str
    why: str
    """Reason of an end that was not the planned one; else empty."""
    best_metric: str
    """Name of the metric that decides which evaluation is best."""
    rows: Rows
    recipe: str
    """YAML."""
    facts: Mapping[str, str]
    """Facts on time and cost, by name."""
    lineage: Mapping[str, str]
    """Facts from the data to the registered version, by name."""
    result: Mapping[str, Any] | None
    """Content of `result.json`; None: not finished."""
    registered: str | None
    """Name and version; empty: not registered when the page was made; None: unknown, for a stage without its job."""
    profile: tuple[Part, ...]
    findings: Findings | None
    pictures: Path
    """Folder of the pictures that `findings` names."""
    statistics: tuple[tuple[str, str, str], ...] = ()
    """Rows on the data: name, training, validation; the first is the heading. Empty: not kept."""
    time: WorkTime | None = None
    machine: str = ""
    """What the stage ran on, in words."""
    problem: ClassVar[str] = ""
    """See `UnreadStage`."""

    @property
    def task(self) -> TaskInfo:
        """Return the description of the kind of task."""
        return task_info(self.kind)


@dataclass(frozen=True)
class UnreadStage:
    """The content of the section on a stage whose recipe cannot be read here, such as without its users' code."""

    name: str
    state: str
    problem: str
    """Why the recipe cannot be read, in one line."""
    fix: str
    """What to do about it."""
    recipe: str
    """YAML."""
    result: Mapping[str, Any] | None
    """As in `Stage`, like the fields below."""
    registered: str | None
    time: WorkTime | None
    machine: str
    why: ClassVar[str] = ""


@dataclass(frozen=True)
class Search:
    """The content of the section on a search."""

    name: str
    facts: Mapping[str, str]
    """Facts on the search, by name."""
    header: tuple[str, ...]
    """Names of the columns of `trials`."""
    trials: tuple[tuple[str, ...], ...]
    """Rows under `header`, the best first."""
    plots: tuple[tuple[Path, str], ...]
    """PNG files and their captions."""
    best_recipe: str
    """YAML; empty when no trial reached an evaluation."""
    space: str
    """YAML."""


@dataclass(frozen=True)
class Page:
    """The content of the page: a job's stages and searches, or one of them alone."""

    name: str
    overview: Overview
    facts: Mapping[str, str]
    stages: tuple[Stage | UnreadStage, ...] = ()
    searches: tuple[Search, ...] = ()
    made: datetime = field(default_factory=lambda: datetime.now(UTC))


def render(page: Page) -> str:
    """Return the page as HTML."""
    helpers = {"curves": curves, "matrix": matrix, "confusions": confusions, "precision": precision, "metrics": metrics,
               "class_tables": class_tables, "class_colour": class_colour, "data_rows": data_rows,
               "remarks": remarks}  # fmt: skip
    return environment().get_template(TEMPLATE).render(page=page, **helpers)


def environment() -> Environment:
    """Return the Jinja environment of the templates of this folder, with their filters."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(image=_data_uri, big=_format_large, colour=class_hex)
    return templates


@dataclass(frozen=True)
class Chart:
    """A chart, with its text alternative."""

    title: str
    svg: str
    words: str
    """Text alternative for readers who do not see the chart."""


def curves(stage: Stage, index: int) -> list[Chart]:
    """Return charts of a stage's metrics by step, without those that were never recorded.

    Args:
        stage: the stage.
        index: position of the stage on the page, which makes the ids of the chart's elements unique.
    """
    steps, values = points(stage.rows, stage.best_metric)
    best = steps[int(np.argmax(values))] if steps else None
    at = stage.result["step"] if stage.result else best  # they differ where the best checkpoint was not written
    metric = stage.best_metric.removeprefix("val/")
    panels: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Loss", ["train/loss", "val/loss"], "loss", {}),
        (f"Evaluation: {metric}", [stage.best_metric], metric, {"mark": at}),
        ("Learning rate", ["train/lr"], "learning rate", {}),
        ("Gradient norm", ["train/grad_norm"], "norm", {"log": _decades(points(stage.rows, "train/grad_norm")[1]) > 1}),
        ("Speed", ["train/images_per_s"], "images/s", {}),
        ("Waiting for data", ["train/data_wait"], "share of time", {"limits": (0.0, 1.0)}),
    ]
    charts = []
    for chart_index, (title, names, up, options) in enumerate(panels):
        lines: dict[str, Line] = {name: points(stage.rows, name) for name in names}
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            svg = line_chart(f"stage-{index}-curve-{chart_index}", lines, across="step", up=up, **options)
            charts.append(Chart(title, svg, f"{title} by step: {_format_ends(lines)}"))
    return charts


def precision(stage: Stage, index: int) -> Chart | None:
    """Return the chart of precision by recall of a detector; None where it is unknown.

    It has the mean over all classes, and the classes or those with the lowest mean precision.

    Args:
        stage: the stage.
        index: position of the stage on the page, which makes the ids of the chart's elements unique.
    """
    if stage.findings is None or "precision" not in stage.findings.details:
        return None
    by_class = {name: np.array(curve) for name, curve in stage.findings.details["precision"].items()}
    if not by_class:
        return None
    worst = sorted(by_class, key=lambda name: float(by_class[name].mean()))[: LINES - 1]
    mean = "mean"
    while mean in by_class:
        mean += " of all"
    drawn = {mean: np.mean(list(by_class.values()), axis=0), **{name: by_class[name] for name in sorted(worst)}}
    recall = np.linspace(0, 1, len(drawn[mean])).tolist()
    lines: dict[str, Line] = {name: (recall, curve.tolist()) for name, curve in drawn.items()}
    colors = {mean: PAGE_INK, **{name: class_colour(stage, name) for name in worst}}
    svg = line_chart(
        f"stage-{index}-precision", lines, across="recall", up="precision", colors=colors, limits=(0.0, 1.02)
    )
    means = ", ".join(f"{name} {float(curve.mean()):.2f}" for name, curve in drawn.items())
    restriction = f"; the {len(worst)} worst of {len(by_class)} classes" if len(worst) < len(by_class) else ""
    words = f"Precision by recall; mean precision: {means}{restriction}"
    return Chart("Precision by recall", svg, words)


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix."""

    count: int
    """Images or pixels, by the task's `confusion_unit`."""
    share: float
    """Fraction of all that have the row's label, 0 to 1."""


def matrix(stage: Stage) -> list[list[Cell]] | None:
    """Return the confusion matrix, rows by label and columns by predicted class.

    None where there are no predictions, or more than `MATRIX_CLASSES` classes.
    """
    classes = len(stage.result["classes"]) if stage.result else 0
    pairs = _pairs(stage)
    if not pairs or classes > MATRIX_CLASSES:
        return None
    table = np.zeros((classes, classes), np.int64)
    for label, predicted, count in pairs:
        table[label, predicted] = count
    totals = np.maximum(table.sum(axis=1), 1)
    return [[Cell(int(count), float(count / totals[label])) for count in row] for label, row in enumerate(table)]


def confusions(stage: Stage) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions: label, predicted class, and count by the task's `confusion_unit`."""
    wrong = sorted((pair for pair in _pairs(stage) if pair[0] != pair[1]), key=lambda pair: -pair[2])[:CONFUSIONS]
    classes = stage.result["classes"] if stage.result else []
    return [(classes[label], classes[predicted], count) for label, predicted, count in wrong]


def metrics(stage: Stage) -> dict[str, float]:
    """Return the best evaluation's metrics, without those of single classes."""
    metrics = stage.result["metrics"] if stage.result else {}
    return {name: value for name, value in metrics.items() if name.count("/") == 1}


def class_metrics(stage: Stage) -> dict[str, dict[str, float]]:
    """Return the best evaluation's metrics of single classes: value by metric (`iou`, `box_ap`, ...) and class."""
    metrics = stage.result["metrics"] if stage.result else {}
    by_class: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        _, metric, *class_name = name.split("/", 2)
        if class_name:
            by_class.setdefault(metric, {})[class_name[0]] = value
    return by_class


@dataclass(frozen=True)
class ClassTable:
    """Values of a metric by class."""

    title: str
    metric: str
    """Name of the metric, such as `iou`."""
    shown: Mapping[str, float]
    """Value by class, of the classes whose rows are visible."""
    folded: Mapping[str, float]
    """Value by class, of the other classes."""
    absent: tuple[str, ...]
    """Classes without a value: the evaluation had no data for them."""


def class_tables(stage: Stage) -> list[ClassTable]:
    """Return a table for each metric of single classes; of many classes, those with the lowest values come first."""
    all_classes = class_metric_names("", stage.result["classes"]) if stage.result else []
    tables = []
    for metric, values in class_metrics(stage).items():
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        shown = finite if len(finite) <= CLASSES else dict(sorted(finite.items(), key=lambda pair: pair[1])[:LOWEST])
        folded = {name: value for name, value in finite.items() if name not in shown}
        absent = tuple(name[1:] for name in all_classes if name[1:] not in finite)
        tables.append(ClassTable(stage.task.class_metrics.get(metric, metric), metric, shown, folded, absent))
    return tables


def data_rows(stage: Stage) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Return the rows of the table of data without its heading: those with any data, and the others."""
    rows = stage.statistics[1:]
    empty = [row for row in rows if all(cell in NOTHING for cell in row[1:])]
    return [row for row in rows if row not in empty], empty


def remarks(stage: Stage) -> list[str]:
    """Return sentences on what is remarkable about a finished stage; none for others."""
    result, sentences = stage.result, []
    if result is None:
        return []
    for table in class_tables(stage)[:1]:
        values = {**table.shown, **table.folded}
        name, value = min(values.items(), key=lambda pair: pair[1], default=("", 0.0))
        zeros = list(values.values()).count(0)
        if zeros > 1:
            sentences.append(f"{zeros} of {len(values)} classes have {table.metric} 0.")
        elif len(table.shown) > 1:
            sentences.append(f"Weakest class: {name} ({table.metric} {value:.4f}).")
    wrong = confusions(stage)
    if wrong and stage.task.confusion_unit == "images" and stage.findings:
        label, predicted, count = wrong[0]
        images = stage.findings.images
        sentences.append(f"Most frequent confusion: {label} taken for {predicted}, {count} of {images} images.")
    evaluations = points(stage.rows, stage.best_metric)[0]
    if len(evaluations) > 1 and result["step"] == result["last_step"]:
        sentences.append("The last evaluation was the best one: a longer training may reach more.")
    if result["metrics"].get("val/bad_samples"):
        sentences.append(f"{result['metrics']['val/bad_samples']:.0f} validation images could not be decoded.")
    shared = next((row[2] for row in stage.statistics if row[0] == "also in training"), "0")
    if not shared.startswith("0"):
        sentences.append(f"{shared} validation images are also in the training split: the metrics may be too good.")
    return sentences


def class_colour(stage: Stage, name: str) -> str:
    """Return the colour (#rrggbb) that a class has in all pictures; the text's colour for a name that is no class's.

    Args:
        stage: the stage whose classes are meant.
        name: name of the class in metrics, see `class_metric_names`.
    """
    classes = class_metric_names("", stage.result["classes"]) if stage.result else []
    names = [metric_name.removeprefix("/") for metric_name in classes]
    return class_hex(names.index(name)) if name in names else PAGE_INK


def _pairs(stage: Stage) -> list[list[int]]:
    details: Mapping[str, Any] = stage.findings.details if stage.findings else {}
    return list(details.get("confusions", []))


def _decades(values: Sequence[float]) -> float:
    """Return the decades from the smallest to the largest of positive values; 0 where one is not positive."""
    return float(np.log10(max(values) / min(values))) if values and min(values) > 0 else 0.0


def _format_ends(lines: Mapping[str, Line]) -> str:
    return "; ".join(f"{name} from {_format_range(values)}" for name, (_, values) in lines.items())


def _format_range(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"


def _data_uri(file: Path) -> str:
    """Return a picture's content as a data URI."""
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _format_large(count: float) -> str:
    """Return a large number rounded to three digits, such as `1.79 M`."""
    units: Iterable[tuple[float, str]] = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next((f"{count / size:.3g} {unit}" for size, unit in units if count >= size), f"{count:.3g}")
