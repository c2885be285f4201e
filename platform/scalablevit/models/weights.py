"""Initial weights from a local file or timm's local cache, loaded into a model; every difference is reported."""

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

import huggingface_hub
import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained, load_state_dict
from torch import Tensor, nn

from scalablevit.config.errors import UserError
from scalablevit.io import sha256_of
from scalablevit.models.torch_archive import check_sizes
from scalablevit.text import and_more

_NAMED = 5
# norms that a pyramid applies to its maps, and that a classification checkpoint may lack
_NORM_PREFIXES = ("feature_norms.", "norm.")


@dataclass(frozen=True)
class InitReport:
    """The result of `load_init_weights`.

    Attributes:
        source: the file or tag as the user gave it.
        sha256: of the file that was read, in hexadecimal.
        loaded: number of tensors that were loaded.
        new: names of the model's tensors that kept their fresh values (a head of other classes, norms of a pyramid).
        ignored: names in the file that the model does not have.
    """

    source: str
    sha256: str
    loaded: int
    new: tuple[str, ...]
    ignored: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line with the counts, and a line for each name that is new or ignored."""
        counts = f"{self.loaded} tensors from {self.source} (sha256 {self.sha256[:12]})"
        lines = [f"{counts}; {len(self.new)} new, {len(self.ignored)} ignored"]
        lines += [f"  new: {name}" for name in self.new]
        lines += [f"  ignored: {name}" for name in self.ignored]
        return "\n".join(lines)


def load_init_weights(model: nn.Module, source: str | Path, *, keep_head: bool = True) -> InitReport:
    """Load pretrained weights into a classifier or a pyramid.

    Args:
        model: a model of `build_classifier` or `build_pyramid`.
        source: a .safetensors, .pth or .pt file with a flat dict of tensors, at top level or under `model` or
            `state_dict`, with any wrapper's prefix; or a timm tag such as `resnet18.a1_in1k`, whose weights are in
            timm's local cache (nothing is downloaded).
        keep_head: False: the classifier keeps its fresh weights even if its shape fits, for other classes of the same
            number.

    Raises:
        UserError: the source cannot be read, or more than a head or a pyramid's norms is missing from it.
    """
    path, tensors = _read_source(source)
    fitted, new, ignored = fit_tensors(model, tensors, str(source), keep_head=keep_head)
    _load(model, fitted, str(source))
    return InitReport(str(source), sha256_of(path), len(fitted), new, ignored)


def check_fit(model: nn.Module, source: str | Path, *, keep_head: bool = True) -> None:
    """Raise the errors of `load_init_weights` without loading.

    Args:
        model: on the meta device: only shapes are compared.
        source: see `load_init_weights`.
        keep_head: see `load_init_weights`.

    Raises:
        UserError: as `load_init_weights`.
    """
    check_tensors(model, _read_source(source)[1], str(source), keep_head=keep_head)


def check_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, keep_head: bool = True) -> None:
    """Raise the errors of `load_init_weights` for tensors that are read already, without loading.

    Args:
        model: on the meta device: only shapes are compared.
        tensors: by name; their values do not matter.
        source: where they are from, for errors.
        keep_head: see `load_init_weights`.
    """
    fitted, _, _ = fit_tensors(model, tensors, source, keep_head=keep_head)
    with warnings.catch_warnings(action="ignore"):  # torch's, of values that are not copied onto the meta device
        _load(model, fitted, source)


def _read_source(source: str | Path) -> tuple[Path, dict[str, Tensor]]:
    """Return the file that `source` names, and its tensors."""
    path = Path(source).expanduser()
    if path.is_file():
        return path, read_tensors(path)
    if is_model_pretrained(str(source)):
        return _read_cached_tag(str(source))
    raise UserError(
        f"{str(source)!r} is neither a file nor a pretrained tag of timm",
        where="model.init",
        fix="give the path of a .safetensors or .pth file, or a tag such as resnet18.a1_in1k",
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without unpickling code.

    Args:
        path: a .safetensors, .pth or .pt file.

    Raises:
        UserError: the file is damaged, declares more than it can hold, holds more than tensors, or has no flat dict
            where one is looked for.
    """
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(
            f"cannot read weights from a {path.suffix or 'nameless'} file",
            where=str(path),
            fix="give a .safetensors, .pth or .pt file",
        )
    if path.suffix != ".safetensors":  # whose own reader compares sizes
        check_sizes(path)
    try:
        tensors = load_state_dict(str(path), use_ema=False)
    except (RuntimeError, SafetensorError, OSError, EOFError, AttributeError, TypeError) as error:
        unsafe = "weights_only" in str(error)
        raise UserError(
            "holds objects other than tensors, which could run code"
            if unsafe
            else f"is damaged or no weights: {error}",
            where=str(path),
            fix="save the state dict alone, best as .safetensors",
        ) from error
    size = path.stat().st_size
    large = [name for name, value in tensors.items() if isinstance(value, Tensor) and value.nbytes > size]
    if large:  # one stored value is repeated, by a stride of 0
        raise UserError(
            f"tensors are larger than the file itself: {_some(large)}",
            where=str(path),
            fix="save the state dict alone, best as .safetensors",
        )
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if strange or not tensors:
        raise UserError(
            f"holds no flat dict of tensors at top level, under 'model' or 'state_dict'; found {_some(strange)}",
            where=str(path),
            fix="save the model's state dict alone",
        )
    return tensors


def fit_tensors(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, *, keep_head: bool = True
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Select the tensors that a model can load.

    Shapes are compared for the classifier only, whose size depends on the classes; `load_state_dict` checks the others.

    Args:
        model: the model to load into.
        tensors: by their names in the source.
        source: file or tag, for errors.
        keep_head: as in `load_init_weights`.

    Returns:
        Tensors under the model's names; names of the model's tensors that keep fresh values; names in the source that
        the model does not have.

    Raises:
        UserError: the model needs tensors, other than a head's or a pyramid's norms, that are not there.
    """
    own = model.state_dict()
    inner = _inner_prefix(own)
    names = {name.removeprefix(inner): name for name in own}
    outer = _outer_prefix(set(names), set(tensors))
    classifiers, head = _classifier_prefixes(model)

    fitted: dict[str, Tensor] = {}
    new: list[str] = []
    missing: list[str] = []
    for name, own_name in names.items():
        tensor = tensors.get(outer + name)
        sized_by_classes = name.startswith(classifiers)
        if tensor is not None and (not sized_by_classes or (keep_head and tensor.shape == own[own_name].shape)):
            fitted[own_name] = tensor
        elif name.endswith(".num_batches_tracked"):
            continue  # old checkpoints lack this counter, which BatchNorm does not compute with
        elif tensor is not None or name.startswith((*head, *_NORM_PREFIXES)):
            new.append(own_name)
        else:
            missing.append(name)
    used = {outer + own_name.removeprefix(inner) for own_name in fitted}
    ignored = [name for name in tensors if name not in used]
    if missing or not fitted:
        raise UserError(
            f"lacks {len(missing)} of the model's {len(names)} tensors: {_some(missing)}; "
            f"has instead: {_some(ignored)}",
            where=source,
            fix="check that model.name is the architecture that the weights were trained with",
        )
    return fitted, tuple(new), tuple(ignored)


def _inner_prefix(own: Mapping[str, Tensor]) -> str:
    """Return `body.` for a Pyramid, whose timm model is in its `body`; else nothing."""
    return "body." if all(name.startswith("body.") for name in own) else ""


def _outer_prefix(names: set[str], source: set[str]) -> str:
    """Return the prefix that a wrapper (DDP, a pyramid, a segmentor) put before most of the model's names."""
    prefixes = Counter[str]()
    for name in source:
        parts = name.split(".")
        prefixes.update(
            ".".join(parts[:cut]) + "." if cut else "" for cut in range(len(parts)) if ".".join(parts[cut:]) in names
        )
    return max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default="")


def _classifier_prefixes(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return prefixes of the layers that are sized by the classes, and prefixes of the modules of the head."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return tuple(f"{layer}." for layer in layers), tuple(f"{layer.split('.')[0]}." for layer in layers)


def cached_tag_file(tag: str) -> Path:
    """Return the file in the local cache with the weights of a timm tag.

    Raises:
        UserError: no such tag, or its weights are not in the cache.
    """
    if not is_model_pretrained(tag):
        raise UserError(f"timm has no weights under the tag {tag!r}", where="model.init",
                        fix="write timm:<architecture>.<tag>, such as timm:resnet18.a1_in1k")  # fmt: skip
    path = _cached_file(cast("PretrainedCfg", get_pretrained_cfg(tag)))
    if path is None:
        raise UserError(
            f"the weights of {tag} are not in this machine's cache, and training downloads nothing",
            where="model.init",
            fix=f'once, where there is internet: python -c "import timm; timm.create_model({tag!r}, pretrained=True)"; '
            f"then copy the cache ({huggingface_hub.constants.HF_HUB_CACHE}) here, or give the file's path",
        )
    return path


def _read_cached_tag(tag: str) -> tuple[Path, dict[str, Tensor]]:
    """Return the cached file of a timm tag, and its tensors as timm converts them for the tag's architecture."""
    path = cached_tag_file(tag)
    overlay = {"file": str(path), "custom_load": cast("PretrainedCfg", get_pretrained_cfg(tag)).custom_load}
    return path, timm.create_model(tag, pretrained=True, pretrained_cfg_overlay=overlay).state_dict()


def _cached_file(config: PretrainedCfg) -> Path | None:
    """Return the file in the cache of the Hugging Face hub's client or of torch.hub; None: neither has it."""
    filenames = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    for filename in filenames if config.hf_hub_id else ():
        cached = huggingface_hub.try_to_load_from_cache(str(config.hf_hub_id), filename)
        if isinstance(cached, str):
            return Path(cached)
    downloaded = Path(torch.hub.get_dir()) / "checkpoints" / PurePosixPath(str(config.url)).name
    return downloaded if config.url and downloaded.is_file() else None


def _load(model: nn.Module, fitted: Mapping[str, Tensor], source: str) -> None:
    """Load tensors into a model, whose own hooks may convert them."""
    try:
        model.load_state_dict(fitted, strict=False)
    except RuntimeError as error:
        mismatches = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
        raise UserError(
            f"{len(mismatches)} tensors have other shapes than the model: {_some(mismatches)}",
            where=source,
            fix="build the model with the arguments the weights were trained with (model.name, model.options)",
        ) from error


def _some(names: list[str]) -> str:
    return (", ".join(names[:_NAMED]) or "nothing") + and_more(len(names), _NAMED)
