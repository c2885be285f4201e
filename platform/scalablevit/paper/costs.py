"""Parameters and FLOPs of the paper's models as the shipped recipes build them, next to the paper's values."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scalablevit.config.loading import load_recipe
from scalablevit.models.counting import PAPER_CLASSIFICATION, PaperRow
from scalablevit.paper.saving import save_note, save_rows

HEADS = {
    "classifier": ("imagenet", 1000),
    "semantic_fpn": ("ade20k_semantic_fpn", 150),
    "upernet": ("ade20k_upernet", 150),
    "retinanet": ("coco_retinanet_1x", 80),
    "mask_rcnn": ("coco_mask_rcnn_1x", 80),
}
"""By head: the prefix of its recipes' names, and the number of classes of ImageNet-1K, ADE20K or COCO."""
BACKBONES = (
    ("S", "scalablevit_small", ()),
    ("S, released form", "scalablevit_small", ("model.options.wide_value=false",)),
    ("B", "scalablevit_base", ()),
    ("L", "scalablevit_large", ()),
)
"""Name, suffix of its recipes' names, and overrides. The paper's values for S are those of the wide-value form, which
its recipes have."""
LINE = "{:<13} {:<16} {:<11} {:>7} {:>7} {:>8} {:>7} {:>15}"
NOTES = """\
GFLOPs: multiply-accumulates of convolutions and linear layers, as the paper counts; the last column has attention's
products too. Mask R-CNN with 1000 box and 100 mask regions; UperNet's auxiliary head counts as parameters only. The
paper's 104.9 M of the classifier L fits no setting: the released model has 109.29 M and exactly the paper's FLOPs."""


@dataclass(frozen=True)
class CostRow:
    """The cost of a head on a backbone, and the paper's values."""

    head: str
    backbone: str
    size: str
    """Height x width of the image, in pixels."""
    parameters: int
    macs: int
    """Multiply-accumulates without attention's products, see `models.counting.Cost`."""
    macs_with_attention: int
    paper: PaperRow
    """From the tables in models/counting.py and tasks/dense_cost.py."""

    def __str__(self) -> str:
        return LINE.format(
            self.head, self.backbone, self.size, f"{self.parameters / 1e6:.2f}", f"{self.paper.parameters_m:.1f}",
            f"{self.macs / 1e9:.2f}", f"{self.paper.gflops:g}", f"{self.macs_with_attention / 1e9:.2f}",
        )  # fmt: skip

    def record(self) -> dict[str, str | float]:
        """Return plain values by name; deviations from the paper in percent."""
        own = {name: value for name, value in asdict(self).items() if name != "paper"}
        return own | {
            "paper_parameters_m": self.paper.parameters_m,
            "paper_gflops": self.paper.gflops,
            "parameters_deviation": round(100 * (self.parameters / 1e6 / self.paper.parameters_m - 1), 2),
            "gflops_deviation": round(100 * (self.macs / 1e9 / self.paper.gflops - 1), 2),
        }


def save_costs(recipes: Path, out: Path) -> None:
    """Count all costs, print them as a table, and write `costs.csv` and `costs.json`.

    Args:
        recipes: the folder of the shipped recipes.
        out: folder for the files.
    """
    rows: list[dict[str, str | float]] = []
    for row in cost_rows(recipes):
        if not rows:
            print(LINE.format("head", "backbone", "image", "M", "paper", "GFLOPs", "paper", "with attention"))
        rows.append(row.record())
        print(row, flush=True)
    print(NOTES)
    save_rows(rows, out / "costs.csv")
    save_note({"counting": NOTES, "rows": rows}, out / "costs.json")


def cost_rows(recipes: Path) -> Iterator[CostRow]:
    """Yield the cost of every head on every backbone, one after the other.

    Args:
        recipes: the folder of the shipped recipes.
    """
    from scalablevit.tasks.dense_cost import PAPER_DETECTION, PAPER_SEGMENTATION
    from scalablevit.tasks.registry import task_kind

    paper = {("classifier", name): row for name, row in PAPER_CLASSIFICATION.items()}
    paper |= PAPER_SEGMENTATION | PAPER_DETECTION
    for head, (prefix, count) in HEADS.items():
        for backbone, name, overrides in BACKBONES:
            (stage,) = load_recipe(recipes / f"{prefix}_{name}.yaml", overrides).stages.values()
            classes = tuple(str(index) for index in range(count))
            costs = task_kind(stage.task.kind).build_costs(stage, classes)
            cost, size = costs.count(), "{} x {}".format(*costs.size)
            yield CostRow(head, backbone, size, cost.parameters, cost.macs, cost.macs_with_attention,
                          paper[head, name])  # fmt: skip
