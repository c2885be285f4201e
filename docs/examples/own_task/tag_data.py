"""The data of `tags.yaml`: scenes of the built-in shapes, and the names of the shapes in each."""

import json
import shutil
from pathlib import Path

from scalablevit.config.data import Shapes
from scalablevit.data.shapes import write_shapes


def write_tag_data(root: Path, train_images: int = 24, val_images: int = 8) -> None:
    """Write images and tables below the platform's root; what is there is written again.

    Args:
        root: the platform's root; the data is in `tag-data` below it.
        train_images: of the training split.
        val_images: of the validation split.
    """
    data = root / "tag-data"
    write_shapes(Shapes(train_images=train_images, val_images=val_images, image_size=32), data / "shapes")
    scenes = data / "shapes" / "detection"
    for split in ("train", "val"):
        annotations = json.loads((scenes / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in annotations["categories"]}
        tags: dict[int, set[str]] = {image["id"]: set() for image in annotations["images"]}
        for each in annotations["annotations"]:
            tags[each["image_id"]].add(names[each["category_id"]])
        shutil.copytree(scenes / split, data / "images" / split, dirs_exist_ok=True)
        lines = [",".join([image["file_name"], *sorted(tags[image["id"]])]) for image in annotations["images"]]
        (data / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
