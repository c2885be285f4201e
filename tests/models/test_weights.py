"""Initial weights: what loads, what stays new and is named, what is refused."""

import argparse
import hashlib
import pickle
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scalablevit.config.errors import UserError
from scalablevit.models.backbone import build_classifier, build_pyramid
from scalablevit.models.weights import load_init_weights, read_tensors

SWIN = "swin_tiny_patch4_window7_224"
BACKBONES = ("scalablevit_tiny", "resnet18", SWIN, "pvt_v2_b0")


def small(name: str) -> dict[str, Any]:
    """Arguments that make Swin as quick to build and save as the others."""
    return {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)} if name == SWIN else {}


def scrambled(model: nn.Module) -> nn.Module:
    """Every tensor changed, so that a test cannot pass on equal initial values."""
    torch.manual_seed(3)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def save(model: nn.Module, path: Path, prefix: str = "") -> Path:
    save_file({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def same(model: nn.Module, source: dict[str, Tensor], own_prefix: str = "", except_for: tuple[str, ...] = ()) -> None:
    for name, tensor in model.state_dict().items():
        if name not in except_for:
            assert torch.equal(tensor, source[name.removeprefix(own_prefix)]), name


@pytest.mark.parametrize("name", BACKBONES)
def test_a_classifier_becomes_a_pyramid_of_the_same_architecture(name: str, tmp_path: Path) -> None:
    classifier = scrambled(build_classifier(name, 5, **small(name)))
    path = save(classifier, tmp_path / "weights.safetensors")
    pyramid = build_pyramid(name, **small(name))
    report = load_init_weights(pyramid, path)
    stages = range(3) if name == "scalablevit_tiny" else range(0)
    norms = tuple(f"body.feature_norms.{stage}.{kind}" for stage in stages for kind in ("weight", "bias"))
    assert report.new == norms
    assert report.loaded == len(pyramid.state_dict()) - len(norms)
    assert all(name.startswith(("head", "fc", "norm.")) for name in report.ignored) and report.ignored
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    same(pyramid, classifier.state_dict(), "body.", norms)


def test_the_last_norm_of_a_pyramid_comes_from_the_classifier(tmp_path: Path) -> None:
    classifier = scrambled(build_classifier("scalablevit_tiny", 5))
    pyramid = build_pyramid("scalablevit_tiny")
    report = load_init_weights(pyramid, save(classifier, tmp_path / "weights.safetensors"))
    assert set(report.ignored) == {"head.weight", "head.bias"}
    assert torch.equal(pyramid.body.norm.weight, classifier.norm.weight)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_pyramid_loads_a_pyramid_and_a_wrapped_one(name: str, prefix: str, tmp_path: Path) -> None:
    source = scrambled(build_pyramid(name, **small(name)))
    target = build_pyramid(name, **small(name))
    report = load_init_weights(target, save(source, tmp_path / "weights.safetensors", prefix))
    assert report.new == report.ignored == ()
    same(target, source.state_dict())


@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_pth_file_is_read_with_its_keys_wherever_they_lie(key: str | None, tmp_path: Path) -> None:
    source = scrambled(build_classifier("resnet18", 5))
    content: dict[str, Any] = source.state_dict() if key is None else {key: source.state_dict(), "epoch": 3}
    torch.save(content, tmp_path / "weights.pth")
    target = build_classifier("resnet18", 5)
    report = load_init_weights(target, str(tmp_path / "weights.pth"))
    assert report.new == report.ignored == ()
    same(target, source.state_dict())


@pytest.mark.parametrize(
    ("name", "arguments", "new"),
    [
        ("resnet18", {}, ("fc.weight", "fc.bias")),
        ("scalablevit_tiny", {}, ("head.weight", "head.bias")),
        ("scalablevit_tiny", {"head": "released"}, ("head.3.weight", "head.3.bias")),
    ],
)
def test_another_class_list_keeps_the_backbone_and_names_the_rest(
    name: str, arguments: dict[str, Any], new: tuple[str, ...], tmp_path: Path
) -> None:
    source = scrambled(build_classifier(name, 5, **arguments))
    path = save(source, tmp_path / "weights.safetensors")
    other_count, other_list = build_classifier(name, 4, **arguments), build_classifier(name, 5, **arguments)
    fresh = {key: tensor.clone() for key, tensor in other_list.state_dict().items()}
    assert load_init_weights(other_count, path).new == new
    same(other_count, source.state_dict(), except_for=new)
    report = load_init_weights(other_list, path, keep_head=False)
    assert report.new == new and set(report.ignored) == set(new)
    first, *names = str(report).splitlines()
    assert first.endswith(f"; {len(new)} new, {len(report.ignored)} ignored") and f"  new: {new[0]}" in names
    same(other_list, source.state_dict(), except_for=new)
    assert torch.equal(other_list.state_dict()[new[0]], fresh[new[0]])


def test_the_value_form_of_a_checkpoint_is_taken(tmp_path: Path) -> None:
    ratios = {"channel_ratios": (2, 2, 2, 1)}
    source = scrambled(build_classifier("scalablevit_tiny", 5, wide_value=True, **ratios))
    path = save(source, tmp_path / "wide.safetensors")
    target = build_classifier("scalablevit_tiny", 5, **ratios)
    load_init_weights(target, path)
    same(target, source.state_dict())
    with pytest.raises(UserError, match="other shapes"):
        load_init_weights(build_classifier("scalablevit_tiny", 5, wide_value=False, **ratios), path)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save(build_classifier("resnet18", 5), tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"lacks \d+ of the model's \d+ tensors"):
        load_init_weights(build_classifier("scalablevit_tiny", 5), path)
    with pytest.raises(UserError, match=r"lacks \d+ of"):
        load_init_weights(build_classifier("resnet34", 5), path)
    with pytest.raises(UserError, match=r"other shapes than the model: size mismatch for conv1\.weight"):
        load_init_weights(build_classifier("resnet18", 5, in_chans=1), path)


def test_a_file_with_part_of_the_backbone_is_refused(tmp_path: Path) -> None:
    tensors = {n: t for n, t in build_classifier("pvt_v2_b0", 5).state_dict().items() if "stages.2" not in n}
    save_file(tensors, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"stages\.2"):
        load_init_weights(build_pyramid("pvt_v2_b0"), tmp_path / "part.safetensors")


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def test_unreadable_files_are_refused_by_name(tmp_path: Path) -> None:
    model = build_classifier("resnet18", 5)
    whole = save(model, tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "weights.npz").write_bytes(b"x")
    torch.save({"model": model.state_dict(), "extra": _Payload(tmp_path / "ran")}, tmp_path / "evil.pth")
    torch.save(argparse.Namespace(lr=1.0), tmp_path / "arguments.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    torch.save({"optimizer": {"lr": 1.0}, "weights": model.state_dict()}, tmp_path / "nested.pth")
    torch.save({"model": {}}, tmp_path / "nothing.pth")
    for path in sorted(tmp_path.iterdir()):
        if path.name != "whole.safetensors":
            with pytest.raises(UserError) as caught:
                load_init_weights(model, path)
            assert path.name in str(caught.value)
            assert caught.value.fix
    assert not (tmp_path / "ran").exists()


def repacked(path: Path, target: Path, change: Callable[[bytes], bytes] = bytes, **how: int) -> Path:
    """An archive of torch.save with its pickle changed, packed by zipfile."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", **how) as new:  # type: ignore[call-overload]
        for entry in old.infolist():
            content = old.read(entry)
            new.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return target


def test_an_archive_that_declares_absurd_sizes_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A zip bomb, a tensor of terabytes, one of more numbers than it has, one number that stands for 4 GB."""
    torch.save({"weight": torch.arange(10.0), "zeros": torch.zeros(2**26)}, tmp_path / "zeros.pth")
    bomb = repacked(tmp_path / "zeros.pth", tmp_path / "bomb.pth", compression=zipfile.ZIP_DEFLATED)
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "small.pth")
    one, many, terabytes = (pickle.dumps(n, 2)[2:-1] for n in (1000, 1001, 2**43))
    assert read_tensors(repacked(tmp_path / "small.pth", tmp_path / "same.pth"))["weight"][7] == 7
    more = repacked(tmp_path / "small.pth", tmp_path / "more.pth", lambda p: p.replace(one, many))
    huge = repacked(tmp_path / "small.pth", tmp_path / "huge.pth", lambda p: p.replace(one, terabytes))
    torch.save({"weight": torch.zeros(1).expand(2**30)}, tmp_path / "wide.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, said in (
        (bomb, "declares 268.4 MB of content in a file of"),
        (more, "declares a tensor of 4.0 kB and holds 4.0 kB"),
        (huge, "declares a tensor of 35.2 TB and holds 4.0 kB"),
        (tmp_path / "wide.pth", "tensors are larger than the file itself: weight"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            read_tensors(path)
        assert path.name in str(caught.value)
        assert caught.value.fix
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


def test_a_file_of_the_old_form_that_declares_terabytes_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.arange(1000.0)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.pth")["weight"][7] == 7
    content = (tmp_path / "old.pth").read_bytes()
    one, terabytes = (pickle.dumps(n, 2)[2:-1] for n in (1000, 2**43))
    (tmp_path / "huge.pth").write_bytes(content.replace(one, terabytes))
    with pytest.raises(UserError, match="is damaged or no weights"):
        read_tensors(tmp_path / "huge.pth")


def test_a_source_that_is_neither_file_nor_tag_is_refused() -> None:
    with pytest.raises(UserError, match=r"'/nowhere/weights.pth' is neither a file nor a pretrained tag"):
        load_init_weights(build_classifier("resnet18", 5), "/nowhere/weights.pth")


@pytest.fixture
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    return tmp_path


def test_a_tag_loads_from_the_local_hub_cache(empty_caches: Path) -> None:
    source = scrambled(build_classifier("resnet18", 1000))
    repository = empty_caches / "hub/models--timm--resnet18.a1_in1k"
    for folder in ("refs", "snapshots/abc"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    path = save(source, repository / "snapshots/abc/model.safetensors")
    target = build_classifier("resnet18", 5)
    report = load_init_weights(target, "resnet18.a1_in1k")
    assert report.new == ("fc.weight", "fc.bias")
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    same(target, source.state_dict(), except_for=report.new)


def test_a_tag_loads_from_the_local_torch_cache(empty_caches: Path) -> None:
    source = scrambled(build_classifier("resnet18", 1000))
    (empty_caches / "torch/checkpoints").mkdir(parents=True)
    torch.save(source.state_dict(), empty_caches / "torch/checkpoints/resnet18-f37072fd.pth")
    target = build_pyramid("resnet18")
    report = load_init_weights(target, "resnet18.tv_in1k")
    assert set(report.ignored) == {"fc.weight", "fc.bias"}
    same(target, source.state_dict(), "body.")


def test_a_tag_that_is_not_cached_is_refused_without_the_network(
    empty_caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(UserError, match=r"resnet18\.a1_in1k are not in this machine's cache"):
        load_init_weights(build_classifier("resnet18", 5), "resnet18.a1_in1k")
