"""Find and check the weights that `model.init` names, before anything is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scalablevit.config.errors import UserError
from scalablevit.config.recipe import Stage
from scalablevit.config.root import tracking_uri
from scalablevit.io import sha256_of
from scalablevit.pipeline.plan_cache import Facts, cached_facts
from scalablevit.tracking import tags
from scalablevit.tracking.weights import resolve_weights

NORMALIZATION_TOLERANCE = 0.01
"""Largest difference between means or standard deviations of pixels, on the scale from 0 to 1, that is ignored."""


@dataclass(frozen=True)
class InitWeights:
    """The weights that a stage starts from."""

    location: str
    """A path or address, or a timm tag."""
    sha256: str
    """Of the file, in hexadecimal; what is loaded is checked against it."""
    classes: tuple[str, ...] | None
    """Class names of the model that they come from; None: the file does not have them."""
    version: str = ""
    """`<name>/<version>` if they are registered; else empty."""
    pixels: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """`mean` and `std` that they were trained with, where their registered version says so."""

    def lineage(self) -> dict[str, str]:
        """Return the tags for the run and the registered version that start from these weights."""
        values = {tags.INIT_SHA256: self.sha256, tags.PARENT_VERSION: self.version}
        return {name: value for name, value in values.items() if value}

    def keep_head(self, classes: tuple[str, ...]) -> bool:
        """Return whether a head of the same shape may be loaded: not if it is known to be for other classes."""
        return self.classes is None or self.classes == classes


def find_init_weights(stage: Stage, root: Path) -> InitWeights | None:
    """Return what `model.init` names outside the recipe; None for random weights, and for a stage to be trained first.

    Raises:
        UserError: it names nothing that can be read.
    """
    init = stage.model.init
    if init is None or init.startswith("stage:"):
        return None
    if init.startswith("models:/"):
        try:
            registered = resolve_weights(init, tracking_uri(stage.tracking.uri, root), root / "cache" / "models")
        except UserError as error:
            error.where = f"model.init ({error.where})"
            error.fix += "; without such a model write model.init: null (random weights), or timm:<tag>"
            raise
        version = f"{registered.name}/{registered.version}"
        sha256, classes = registered.tags[tags.WEIGHTS_SHA256], tuple(registered.config["classes"])
        return InitWeights(str(registered.weights), sha256, classes, version, pixels_in(registered.config.get("stage")))
    if init.startswith("timm:"):
        from scalablevit.models.weights import cached_tag_file

        tag = init.removeprefix("timm:")
        return InitWeights(tag, sha256_of(cached_tag_file(tag)), None)
    path = root / Path(init).expanduser()
    if not path.is_file():
        raise UserError(
            f"no such file: {path}",
            where="model.init",
            fix="give a .safetensors or .pth file, timm:<tag>, models:/<name>@<alias> or stage:<name>",
        )
    return InitWeights(str(path), sha256_of(path), None)


def check_init_weights(stage: Stage, init_weights: InitWeights, classes: tuple[str, ...], root: Path) -> None:
    """Refuse weights of another architecture, before any worker starts.

    It imports torch, unless weights of the same content have passed for the same stage, classes, code and libraries.

    Args:
        stage: whose backbone takes the weights.
        init_weights: the weights.
        classes: of the stage's data.
        root: the platform's root, where passed checks are cached.

    Raises:
        UserError: the file cannot be read as weights, or the stage's backbone cannot take them.
    """
    keep_head = init_weights.keep_head(classes)
    check = partial(_check_fit, stage, init_weights.location, classes, keep_head)
    cached_facts(stage, classes, root, check, "init_weights", init_weights.sha256, keep_head)


def _check_fit(stage: Stage, location: str, classes: tuple[str, ...], keep_head: bool) -> Facts:
    import torch

    from scalablevit.models.weights import check_fit
    from scalablevit.tasks.registry import build_task

    task = build_task(stage, classes)
    with torch.device("meta"):
        backbone = task.backbone(task.build_model())
    try:
        check_fit(backbone, location, keep_head=keep_head)
    except UserError as error:
        error.where = f"model.init ({stage.model.init}: {error.where})"
        raise
    return {"init_weights": "fit"}


def check_parent_fit(
    stage: Stage, classes: tuple[str, ...], parent: Stage, parent_classes: tuple[str, ...], root: Path
) -> None:
    """Refuse a stage whose backbone cannot take the weights of the stage that it starts from, before that one trains.

    It imports torch where their models differ, unless the same check has passed before.

    Args:
        stage: the stage.
        classes: of its data.
        parent: the stage that it starts from.
        parent_classes: of that one's data.
        root: the platform's root, where passed checks are cached.

    Raises:
        UserError: the backbone cannot take the weights.
    """
    if (stage.model.name, stage.model.options) != (parent.model.name, parent.model.options):
        check = partial(_check_parent_fit, stage, classes, parent, parent_classes)
        cached_facts(stage, classes, root, check, "parent", parent.model_dump_json(), *parent_classes)


def _check_parent_fit(stage: Stage, classes: tuple[str, ...], parent: Stage, parent_classes: tuple[str, ...]) -> Facts:
    import torch

    from scalablevit.models.weights import check_tensors
    from scalablevit.tasks.registry import build_task

    task = build_task(stage, classes)
    with torch.device("meta"):
        backbone = task.backbone(task.build_model())
        weights = build_task(parent, parent_classes).build_model().state_dict()
    where = f"model.init ({stage.model.init}: {parent.model.name})"
    check_tensors(backbone, weights, where, keep_head=classes == parent_classes)
    return {"init_weights": "fit"}


def pixels_in(sections: object) -> dict[str, Sequence[float]]:
    """Return `data.mean` and `data.std` of a stored stage, which may be of any origin; only those that are valid."""
    data = sections.get("data") if isinstance(sections, Mapping) else None
    values = {name: data.get(name) for name in ("mean", "std")} if isinstance(data, Mapping) else {}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, list) and len(value) == 3 and all(isinstance(number, int | float) for number in value)
    }


def init_warnings(stage: Stage, weights: InitWeights | None = None, parent: Stage | None = None) -> tuple[str, ...]:
    """Return warnings where architecture, `data.mean` or `data.std` differ from those that the initial weights know.

    Args:
        stage: the stage.
        weights: from outside the recipe, that it starts from; those of a file do not say what they were trained with.
        parent: the stage of the recipe that it starts from.
    """
    trained, name = weights.pixels if weights else {}, stage.model.name
    if parent is not None:
        trained, name = {"mean": parent.data.mean, "std": parent.data.std}, parent.model.name
    init = stage.model.init or ""
    if init.startswith("timm:"):
        from timm.models import get_pretrained_cfg

        name = init.removeprefix("timm:").partition(".")[0]
        if (config := get_pretrained_cfg(init.removeprefix("timm:"))) is not None:
            trained = {"mean": config.mean, "std": config.std}
    own = {"mean": stage.data.mean, "std": stage.data.std}
    other_name = (
        f"model.name is {stage.model.name}, and {init} is of {name}: where tensors have the same names and shapes, the "
        f"architectures may still compute differently; model.name={name} is what the weights know",
    )
    return (*(other_name if name != stage.model.name else ()), *(
        f"data.{key} is {_format_list(own[key])}, and {init} was trained with {_format_list(theirs)}: "
        f"data.{key}={_format_list(theirs)} gives the weights what they know"
        for key, theirs in trained.items()
        if any(abs(a - b) > NORMALIZATION_TOLERANCE for a, b in zip(theirs, own[key], strict=True))
    ))  # fmt: skip


def _format_list(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"
