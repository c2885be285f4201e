"""A tiny search: an 8-step classification on 64 shapes, by learning rate and drop path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.stages import data_and_task

from scalablevit.config.space import Search
from scalablevit.config.space_loading import load_search

RECIPE = {
    "name": "toy",
    "data": {
        **data_and_task("classification", "toy-data")["data"], "mixup": 0.0,
        "shapes": {"train_images": 64, "val_images": 21, "image_size": 64},
    },
    "model": {"name": "scalablevit_tiny"},
    "task": {"kind": "classification"},
    "optimizer": {"lr": 1e-3},
    "training": {"epochs": 2, "global_batch_size": 16, "evaluate_every": {"epochs": 0.5}, "log_every_steps": 1},
}  # fmt: skip
SPACE = {
    "recipe": "toy.yaml",
    "metric": "val/loss",
    "mode": "min",
    "budget": {"trials": 4},
    "resources": {"workers": 1, "cpus_per_worker": 1},
    "parameters": {
        "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "model.drop_path_rate": {"uniform": [0.0, 0.3]},
    },
}

MakeSearch = Callable[..., Search]


@pytest.fixture
def write_space(tmp_path: Path) -> Callable[..., Path]:
    """Writes recipe and space to a folder; keywords replace or add keys of the space."""

    def write(recipe: dict[str, Any] | None = None, **changes: Any) -> Path:
        (tmp_path / "toy.yaml").write_text(json.dumps({**RECIPE, **(recipe or {})}))
        path = tmp_path / "space.yaml"
        path.write_text(json.dumps({**SPACE, **changes}))
        return path

    return write


@pytest.fixture
def make_search(write_space: Callable[..., Path]) -> MakeSearch:
    """The space, checked."""

    def make(overrides: tuple[str, ...] = (), **changes: Any) -> Search:
        return load_search(write_space(**changes), overrides)

    return make
