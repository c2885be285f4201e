"""The small training that the platform's own costs are measured on: the demo's pictures and model, plain AdamW."""

import json
from pathlib import Path
from typing import Any

from scalablevit.config.data import Shapes
from scalablevit.config.recipe import Stage
from scalablevit.data.shapes import write_shapes

SIDE = 64
BATCH = 32
"""Images of a step on each worker."""


def write_pictures(folder: Path, train: int = 512, val: int = 64, side: int = 96) -> None:
    """The built-in shapes, so that no measurement has to make them."""
    write_shapes(Shapes(train_images=train, val_images=val, image_size=side), folder)


def recipe(data: Path, workers: int, steps: int) -> dict[str, Any]:
    """Pretraining of the demo's model on pictures below `data`, evaluated and saved at its end only."""
    return {
        "name": "bench",
        "data": {
            "source": "image_folder",
            "root": str(data),
            "train": {"images": "classification/train"},
            "val": {"images": "classification/val"},
            "image_size": SIDE,
            "eval_resize": SIDE,
            "crop_scale": [0.5, 1.0],
        },
        "model": {"name": "scalablevit_tiny"},
        "task": {"kind": "classification"},
        "optimizer": {"lr": 1e-3, "clip_norm": 5, "schedule": {"kind": "constant"}},
        "training": {"steps": steps, "global_batch_size": BATCH * workers, "evaluate_every": {"steps": steps}},
        "cluster": {"workers": workers, "cpus_per_worker": 1, "max_failures": 0},
    }


def stage_of(sections: dict[str, Any]) -> Stage:
    """A recipe's only stage, whose sections stand at the top level."""
    return Stage.model_validate_json(json.dumps({name: each for name, each in sections.items() if name != "name"}))
