"""A job's report: one HTML page that needs nothing besides itself."""

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
"""Up to so many a matrix can be read."""
CONFUSIONS = 20
"""Shown instead of it: the most frequent ones."""
CLASSES, LOWEST = 20, 10
"""Up to so many classes are shown by their metrics; of more, so many with the lowest values, and the others folded."""
NOTHING = ("", "0", "0 (0 %)")
"""Cells of the table of data that tell of no data."""
MIME = {".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class Part:
    """A part of a stage's time."""

    name: str
    seconds: float
    text: str


@dataclass(frozen=True)
class Stage:
    """What the page shows of a stage."""

    name: str
    kind: str
    """Of its task."""
    model: str
    state: str
    why: str
    """Of an end that was not the planned one."""
    best_metric: str
    rows: Rows
    recipe: str
    """YAML."""
    facts: Mapping[str, str]
    """On time and cost, by name."""
    lineage: Mapping[str, str]
    """From the data to the registered version, by name."""
    result: Mapping[str, Any] | None
    """Content of `result.json`; None: not finished."""
    registered: str | None
    """Name and version; empty: not registered when the page was made; None: not known, of a stage without its job."""
    profile: tuple[Part, ...]
    findings: Findings | None
    pictures: Path
    """Folder of the pictures that `findings` names."""
    statistics: tuple[tuple[str, str, str], ...] = ()
    """Rows on the data: name, training, validation; the first is the heading. Empty: not kept."""
    time: WorkTime | None = None
    machine: str = ""
    """What it ran on, in words."""
    problem: ClassVar[str] = ""
    """See `UnreadStage`."""

    @property
    def task(self) -> TaskInfo:
        """Return what is known of the kind of task."""
        return task_info(self.kind)


@dataclass(frozen=True)
class UnreadStage:
    """A stage whose recipe cannot be read here, as without its users' code: what the page shows all the same."""

    name: str
    state: str
    problem: str
    """Why it cannot be read, in one line."""
    fix: str
    """What to do about it."""
    recipe: str
    """YAML."""
    result: Mapping[str, Any] | None
    """As of `Stage`, like the fields below."""
    registered: str | None
    time: WorkTime | None
    machine: str
    why: ClassVar[str] = ""


@dataclass(frozen=True)
class Search:
    """What the page shows of a search."""

    name: str
    facts: Mapping[str, str]
    header: tuple[str, ...]
    trials: tuple[tuple[str, ...], ...]
    """Rows under `header`, the best first."""
    plots: tuple[tuple[Path, str], ...]
    """PNG files, and what they show."""
    best_recipe: str
    """YAML; empty when no trial came to an evaluation."""
    space: str
    """YAML."""


@dataclass(frozen=True)
class Page:
    """What the page shows: a job's stages and searches, or one of them alone."""

    name: str
    overview: Overview
    facts: Mapping[str, str]
    stages: tuple[Stage | UnreadStage, ...] = ()
    searches: tuple[Search, ...] = ()
    made: datetime = field(default_factory=lambda: datetime.now(UTC))


def render(page: Page) -> str:
    """The page as HTML."""
    helpers = {"curves": curves, "matrix": matrix, "confusions": confusions, "precision": precision, "metrics": metrics,
               "class_tables": class_tables, "class_colour": class_colour, "data_rows": data_rows,
               "remarks": remarks}  # fmt: skip
    return environment().get_template(TEMPLATE).render(page=page, **helpers)


def environment() -> Environment:
    """The templates of this folder, with their filters."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(image=_data_uri, big=_big, colour=class_hex)
    return made


@dataclass(frozen=True)
class Chart:
    """A drawing and what it shows."""

    title: str
    svg: str
    words: str
    """For those who do not see it."""


def curves(stage: Stage, place: int) -> list[Chart]:
    """The metrics by step of the stage at a place of the page; those that were never recorded are left out."""
    steps, values = points(stage.rows, stage.best_metric)
    best = steps[int(np.argmax(values))] if steps else None
    at = stage.result["step"] if stage.result else best  # they differ where the best checkpoint was not written
    wanted: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Loss", ["train/loss", "val/loss"], "loss", {}),
        (f"Evaluation: {_bare(stage.best_metric)}", [stage.best_metric], _bare(stage.best_metric), {"mark": at}),
        ("Learning rate", ["train/lr"], "learning rate", {}),
        ("Gradient norm", ["train/grad_norm"], "norm", {"log": _decades(points(stage.rows, "train/grad_norm")[1]) > 1}),
        ("Speed", ["train/images_per_s"], "images/s", {}),
        ("Waiting for data", ["train/data_wait"], "share of time", {"limits": (0.0, 1.0)}),
    ]
    charts = []
    for number, (title, names, up, options) in enumerate(wanted):
        lines: dict[str, Line] = {name: points(stage.rows, name) for name in names}
        lines = {name: line for name, line in lines.items() if line[0]}
        if lines:
            svg = line_chart(f"stage-{place}-curve-{number}", lines, across="step", up=up, **options)
            charts.append(Chart(title, svg, f"{title} by step: {_ends(lines)}"))
    return charts


def precision(stage: Stage, place: int) -> Chart | None:
    """Precision by recall of a detector at a place of the page: the mean over classes, and the classes or the worst."""
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
        f"stage-{place}-precision", lines, across="recall", up="precision", colors=colors, limits=(0.0, 1.02)
    )
    means = ", ".join(f"{name} {float(curve.mean()):.2f}" for name, curve in drawn.items())
    left_out = f"; the {len(worst)} worst of {len(by_class)} classes" if len(worst) < len(by_class) else ""
    words = f"Precision by recall; mean precision: {means}{left_out}"
    return Chart("Precision by recall", svg, words)


@dataclass(frozen=True)
class Cell:
    """Of a confusion matrix."""

    count: int
    share: float
    """Of all with the row's label."""


def matrix(stage: Stage) -> list[list[Cell]] | None:
    """Labels by answers; None where there are none, or too many to be read."""
    count = len(stage.result["classes"]) if stage.result else 0
    found = _pairs(stage)
    if not found or count > MATRIX_CLASSES:
        return None
    table = np.zeros((count, count), np.int64)
    for label, answer, times in found:
        table[label, answer] = times
    whole = np.maximum(table.sum(axis=1), 1)
    return [[Cell(int(times), float(times / whole[label])) for times in row] for label, row in enumerate(table)]


def confusions(stage: Stage) -> list[tuple[str, str, int]]:
    """The most frequent wrong answers: label, answer, times."""
    wrong = sorted((pair for pair in _pairs(stage) if pair[0] != pair[1]), key=lambda pair: -pair[2])[:CONFUSIONS]
    classes = stage.result["classes"] if stage.result else []
    return [(classes[label], classes[answer], times) for label, answer, times in wrong]


def metrics(stage: Stage) -> dict[str, float]:
    """The best evaluation's metrics, without those of single classes."""
    metrics = stage.result["metrics"] if stage.result else {}
    return {name: value for name, value in metrics.items() if name.count("/") == 1}


def class_metrics(stage: Stage) -> dict[str, dict[str, float]]:
    """By metric (`iou`, `box_ap`, ...) and class, in the best evaluation's order."""
    metrics = stage.result["metrics"] if stage.result else {}
    found: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        _, metric, *class_name = name.split("/", 2)
        if class_name:
            found.setdefault(metric, {})[class_name[0]] = value
    return found


@dataclass(frozen=True)
class ClassTable:
    """Values of a metric by class."""

    title: str
    metric: str
    """Its name, such as `iou`."""
    shown: Mapping[str, float]
    folded: Mapping[str, float]
    """Of the other classes."""
    absent: tuple[str, ...]
    """Classes without a value: the evaluation had no data of them."""


def class_tables(stage: Stage) -> list[ClassTable]:
    """Return a table for each metric of classes; of many classes those with the lowest values stand first."""
    known = class_metric_names("", stage.result["classes"]) if stage.result else []
    tables = []
    for metric, values in class_metrics(stage).items():
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        shown = finite if len(finite) <= CLASSES else dict(sorted(finite.items(), key=lambda pair: pair[1])[:LOWEST])
        folded = {name: value for name, value in finite.items() if name not in shown}
        absent = tuple(name[1:] for name in known if name[1:] not in finite)
        tables.append(ClassTable(stage.task.class_metrics.get(metric, metric), metric, shown, folded, absent))
    return tables


def data_rows(stage: Stage) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Rows of the table of data without its heading: those that tell of data, and the others."""
    rows = stage.statistics[1:]
    empty = [row for row in rows if all(cell in NOTHING for cell in row[1:])]
    return [row for row in rows if row not in empty], empty


def remarks(stage: Stage) -> list[str]:
    """What stands out of a finished stage, in sentences."""
    result, found = stage.result, []
    if result is None:
        return []
    for table in class_tables(stage)[:1]:
        name, value = min({**table.shown, **table.folded}.items(), key=lambda pair: pair[1], default=("", 0.0))
        if len(table.shown) > 1:
            found.append(f"Weakest class: {name} ({table.metric} {value:.4f}).")
    wrong = confusions(stage)
    if wrong and stage.task.confusion_unit == "images" and stage.findings:
        label, answer, times = wrong[0]
        found.append(f"Most frequent confusion: {label} taken for {answer}, {times} of {stage.findings.images} images.")
    evaluations = points(stage.rows, stage.best_metric)[0]
    if len(evaluations) > 1 and result["step"] == result["last_step"]:
        found.append("The last evaluation was the best one: a longer training may reach more.")
    if result["metrics"].get("val/bad_samples"):
        found.append(f"{result['metrics']['val/bad_samples']:.0f} validation images could not be decoded.")
    shared = next((row[2] for row in stage.statistics if row[0] == "also in training"), "0")
    if not shared.startswith("0"):
        found.append(f"{shared} validation images are also in the training split: the metrics may be too good.")
    return found


def class_colour(stage: Stage, name: str) -> str:
    """The colour that a class has in all pictures; that of the text for a name that is no class's.

    Args:
        name: of the class as metrics have it, see `class_metric_names`.
    """
    classes = class_metric_names("", stage.result["classes"]) if stage.result else []
    names = [each.removeprefix("/") for each in classes]
    return class_hex(names.index(name)) if name in names else PAGE_INK


def _pairs(stage: Stage) -> list[list[int]]:
    details: Mapping[str, Any] = stage.findings.details if stage.findings else {}
    return list(details.get("confusions", []))


def _decades(values: Sequence[float]) -> float:
    """Between the smallest and the largest of positive values; 0 where one is not."""
    return float(np.log10(max(values) / min(values))) if values and min(values) > 0 else 0.0


def _bare(metric: str) -> str:
    return metric.removeprefix("val/")


def _ends(lines: Mapping[str, Line]) -> str:
    return "; ".join(f"{name} from {_short(values)}" for name, (_, values) in lines.items())


def _short(values: Sequence[float]) -> str:
    return f"{values[0]:.4g} to {values[-1]:.4g}, between {min(values):.4g} and {max(values):.4g}"


def _data_uri(file: Path) -> str:
    """A picture's content as an address."""
    return f"data:{MIME[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _big(count: float) -> str:
    """A large number with three digits, such as `1.79 M`."""
    units: Iterable[tuple[float, str]] = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    return next((f"{count / size:.3g} {unit}" for size, unit in units if count >= size), f"{count:.3g}")
