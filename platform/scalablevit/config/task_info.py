"""What the rest of the program knows of each kind of task, without importing torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from scalablevit.config.errors import UserError

Better = Literal["max", "min"]
"""Whether larger (`max`) or smaller (`min`) values of a metric are better."""


@dataclass(frozen=True)
class MetricInfo:
    """A metric over all classes that a task reports."""

    name: str
    """As in `promotion.metric`; evaluations report it as `val/<name>`."""
    better: Better = "max"
    promotable: bool = False
    """Whether promotion can compare models by it, for which the task gives per-sample statistics."""
    heads: tuple[str, ...] = ()
    """Values of `task.head` with which it is reported; empty: with every one."""
    package: str = ""
    """Users' package that added it to the task by `register_metric`; empty: the task's own metric."""

    @property
    def reported_as(self) -> str:
        """Return the metric's name in evaluations, `val/<name>`."""
        return f"val/{self.name}"


@dataclass(frozen=True)
class TaskInfo:
    """A kind of task. What needs torch is in `module`."""

    kind: str
    """The recipe's `task.kind`."""
    module: str
    """Name of the Python module whose `KIND` is the task's `tasks.registry.TaskKind`."""
    stage_name: str
    """Name of the stage of a recipe without `stages`, and of the script that runs such stages alone."""
    sources: tuple[str, ...]
    """Values of `data.source` that it learns from."""
    metrics: tuple[MetricInfo, ...]
    """Metrics over all classes. The first one decides which checkpoint is best; larger is better."""
    class_metrics: Mapping[str, str] = field(default_factory=dict)
    """Metrics that are reported for each class, and what they are in words."""
    needs_pyramid: bool = True
    """Whether the backbone must give feature maps of strides 4, 8, 16 and 32."""
    checks_micro_batches: bool = False
    """Whether the kind refuses micro-batches too small for its batch norms itself (`TaskKind.check_training`)."""
    serving_packages: tuple[str, ...] = ()
    """Distributions that serving needs besides `pipeline.registration.SERVING_PACKAGES`."""
    output_files: tuple[str, ...] = ()
    """Files, and folders (names without a dot), that batch prediction writes."""
    output_note: str = ""
    """What batch prediction prints about these files; empty: nothing."""
    confusion_unit: Literal["images", "pixels"] = "pixels"
    """Unit of the counts of confusions between two classes."""
    takes_lists: bool = False
    """Whether the network takes a list of images (3, H, W) instead of one tensor (N, 3, H, W)."""
    drawn_in_pairs: bool = True
    """Whether an image is drawn twice, with its ground truth and with its prediction; else it is drawn once."""
    right_means: str = ""
    """When the prediction for an image counts as right, and when as partly right, in words; empty: not stated."""

    @property
    def best_metric(self) -> str:
        """Return the reported name of the metric that decides which checkpoint is best."""
        return self.metrics[0].reported_as

    @property
    def metrics_by_interest(self) -> tuple[str, ...]:
        """Return the reported names: first the deciding metric, then users' own, those for promotion, and the rest."""
        first, *others = self.metrics
        ranked = sorted(others, key=lambda metric: (not metric.package, not metric.promotable))
        return tuple(metric.reported_as for metric in (first, *ranked))

    def metrics_with(self, heads: Iterable[object]) -> tuple[MetricInfo, ...]:
        """Return the metrics that are reported with every one of some heads.

        Args:
            heads: values of `task.head`; None of a task without heads.
        """
        wanted = list(heads)
        return tuple(
            metric for metric in self.metrics if not metric.heads or all(head in metric.heads for head in wanted)
        )

    def promotion_metrics(self, head: str | None) -> tuple[str, ...]:
        """Return the names that `promotion.metric` can have; the first one is meant when none is given.

        Args:
            head: value of `task.head`; None of a task without heads.
        """
        return tuple(metric.name for metric in self.metrics_with([head]) if metric.promotable)


_AVERAGE_PRECISION = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")

_ENTRIES = (
    TaskInfo(
        kind="classification",
        module="scalablevit.tasks.classification",
        stage_name="pretrain",
        sources=("image_folder", "tar_shards"),
        metrics=(
            MetricInfo("top1", promotable=True),
            # only for more than five classes; pipeline/resolve.py refuses it otherwise, since the data decides
            MetricInfo("top5", promotable=True),
            MetricInfo("top1_low95"),
            MetricInfo("loss", better="min"),
        ),
        needs_pyramid=False,
        output_files=("labels.csv",),
        confusion_unit="images",
        drawn_in_pairs=False,
        right_means="the label is the most probable class",
    ),
    TaskInfo(
        kind="segmentation",
        module="scalablevit.tasks.segmentation",
        stage_name="segment",
        sources=("mask_pairs",),
        metrics=tuple(MetricInfo(name, promotable=True) for name in ("miou", "macc", "aacc")),
        class_metrics={"iou": "Intersection over union"},
        checks_micro_batches=True,
        serving_packages=("onedl-mmsegmentation", "onedl-mmcv", "onedl-mmengine"),
        output_files=("shares.csv", "classes.csv", "masks", "overlays"),
        right_means="every class has an IoU of 0.5 or more; partly: some classes have",
    ),
    TaskInfo(
        kind="detection",
        module="scalablevit.tasks.detection",
        stage_name="detect",
        sources=("coco",),
        takes_lists=True,
        metrics=tuple(
            MetricInfo(f"{what}_{name}", promotable=name == "ap", heads=heads)
            for what, heads in (("box", ()), ("mask", ("mask_rcnn",)))
            for name in _AVERAGE_PRECISION
        ),
        class_metrics={"box_ap": "Average precision of boxes", "mask_ap": "Average precision of masks"},
        output_files=("detections.json", "overlays"),
        output_note="the ids in detections.json are its own: match categories by name, and images by file_name",
        right_means="every object is found and nothing else; partly: some objects are found",
    ),
)

TASKS: dict[str, TaskInfo] = {info.kind: info for info in _ENTRIES}
"""Every kind of task that a recipe can name, by its `task.kind`."""


def task_info(kind: str) -> TaskInfo:
    """Return the facts about a kind of task.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in TASKS:
        raise UserError(f"there is no task {kind!r}", where="task.kind", fix=f"write one of {', '.join(TASKS)}")
    return TASKS[kind]


def kind_of_script(script: str) -> str | None:
    """Return the kind of task whose stages a script runs; None: it runs stages of all kinds."""
    return next((info.kind for info in TASKS.values() if info.stage_name == script), None)
