"""Whether the coco_subset recipe learns 8 of its images by heart, which wrong boxes, masks or loading would prevent.

    python tests/benchmarks/overfit_coco.py <folder>

The folder is laid out as the recipe says. The images are chosen by rule: the first 8 by id whose annotations are no
crowds and all have sides of at least 32 pixels at the recipe's size. Trained and evaluated on them, without
augmentation; the run's metrics are printed, and the exit code is 1 when AP50 of boxes is not above 0.9.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scalablevit.config.data import CocoInstances
from scalablevit.config.loading import load_recipe
from scalablevit.data.transforms import scaled_size

REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "pipelines" / "recipes" / "coco_subset.yaml"
IMAGES, SIDE, BAR = 8, 32, 0.9
ANNOTATIONS = "annotations/instances_train2017.json"
OVERRIDES = [
    "data.short_side=256",  # the recipe itself is smaller, to take three minutes
    "data.long_side=416",
    "task.neck_channels=96",
    "task.head_channels=256",
    "task.anchor_size=16",
    "task.proposals=200",
    "task.roi_samples=64",
    "task.max_detections=100",
    f"data.val={{images: train2017, annotations: {ANNOTATIONS}}}",
    "data.flip=0",
    "data.color_jitter=0",
    "optimizer.lr=1e-3",
    "optimizer.schedule.decay_epochs=[200, 230]",
    "optimizer.schedule.warmup_steps=50",
    "training.epochs=null",
    "training.steps=500",
    "training.evaluate_every={steps: 250}",
]


def main() -> int:
    """Choose, train, evaluate."""
    source = Path(sys.argv[1])
    data = next(iter(load_recipe(RECIPE, OVERRIDES).stages.values())).data
    assert isinstance(data, CocoInstances)
    content = json.loads((source / ANNOTATIONS).read_text())
    chosen = choose(content, data)
    print("images:", ", ".join(str(image["id"]) for image in chosen))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root / "data", source, content, chosen)
        begin = time.monotonic()
        command = [sys.executable, "pipelines/detect.py", "--recipe", str(RECIPE), "--root", folder, "data.root=data"]
        subprocess.run([*command, *OVERRIDES], cwd=REPOSITORY, check=True, timeout=3600)
        result = json.loads(next(root.glob("runs/*/result.json")).read_text())
        minutes = (time.monotonic() - begin) / 60
    metrics = {name: round(value, 4) for name, value in result["metrics"].items() if name.count("/") == 1}
    print(json.dumps({"minutes": round(minutes, 1), **metrics}, indent=1))
    return int(metrics["val/box_ap50"] <= BAR)


def choose(content: dict[str, Any], data: CocoInstances) -> list[dict[str, Any]]:
    """The first images that follow the rule."""
    chosen = []
    for image in sorted(content["images"], key=lambda each: each["id"]):
        scaled = scaled_size(image["height"], image["width"], data.short_side, data.long_side)
        factor = scaled[0] / image["height"]
        shown = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        if shown and all(not each["iscrowd"] and min(each["bbox"][2:]) * factor >= SIDE for each in shown):
            chosen.append(image)
    return chosen[:IMAGES]


def write(root: Path, source: Path, content: dict[str, Any], chosen: list[dict[str, Any]]) -> None:
    """A data set of the chosen images."""
    ids = {image["id"] for image in chosen}
    kept = [each for each in content["annotations"] if each["image_id"] in ids]
    for folder in ("train2017", "annotations"):
        (root / folder).mkdir(parents=True)
    (root / ANNOTATIONS).write_text(json.dumps({**content, "images": chosen, "annotations": kept}))
    for image in chosen:
        shutil.copy(source / "train2017" / image["file_name"], root / "train2017")


if __name__ == "__main__":
    sys.exit(main())
