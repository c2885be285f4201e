"""ScalableViT: train, search, track and register vision backbones.

`import scalablevit as sv` offers the names below; each is imported when it is first used, so that the import itself
takes no time. `import scalablevit.models` registers the ScalableViT architectures with timm.

    recipe = sv.load_recipe("my.yaml", "training.epochs=10")
    results = sv.run(recipe)
    model = sv.load_model(results["pretrain"].run_folder)
    predictions = model.predict(["photo.jpg"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalablevit.api.model import Model, load_model, predict
    from scalablevit.api.recipes import load_recipe
    from scalablevit.api.running import FinishedSearch, FinishedStage, RunResults, run
    from scalablevit.config.errors import SearchFailed, TrainingFailed, UserError
    from scalablevit.config.extensions import register_metric, register_task
    from scalablevit.config.recipe import Recipe
    from scalablevit.config.transforms import register_transform
    from scalablevit.data.sources.opening import register_source
    from scalablevit.tasks.predictions import (
        ClassificationPrediction,
        DetectionPrediction,
        SegmentationPrediction,
    )

__version__ = "0.1.0"

__all__ = [
    "ClassificationPrediction",
    "DetectionPrediction",
    "FinishedSearch",
    "FinishedStage",
    "Model",
    "Recipe",
    "RunResults",
    "SearchFailed",
    "SegmentationPrediction",
    "TrainingFailed",
    "UserError",
    "__version__",
    "load_model",
    "load_recipe",
    "predict",
    "register_metric",
    "register_source",
    "register_task",
    "register_transform",
    "run",
]

_MODULES = {
    "api.model": ("Model", "load_model", "predict"),
    "api.recipes": ("load_recipe",),
    "api.running": ("FinishedSearch", "FinishedStage", "RunResults", "run"),
    "config.errors": ("SearchFailed", "TrainingFailed", "UserError"),
    "config.extensions": ("register_metric", "register_task"),
    "config.recipe": ("Recipe",),
    "config.transforms": ("register_transform",),
    "data.sources.opening": ("register_source",),
    "tasks.predictions": ("ClassificationPrediction", "DetectionPrediction", "SegmentationPrediction"),
}
"""Where each public name is defined; the block above says the same to type checkers."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value  # next time without this function
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
