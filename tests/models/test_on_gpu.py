"""ScalableViT on a GPU: its kernels, eager and compiled, compute what the CPU computes (`make test-gpu`)."""

from collections.abc import Iterator

import pytest
import timm
import torch
from benchmarks.gpu_model import fused_only, many_windows
from torch import Tensor, nn

import scalablevit.models  # noqa: F401  registers the variants
from scalablevit.models.compilation import compile_blocks
from scalablevit.models.scalablevit import ScalableViT

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("exact_float32")]

# every kind of block of S, one of each, and its head widths 32 and 40
SHALLOW = {"depths": (2, 2, 2, 2), "drop_path_rate": 0.0, "num_classes": 10}


@pytest.fixture
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without TensorFloat-32, whose products keep 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The logits and the gradients of their mean square, on the CPU."""
    logits = model(images)
    logits.square().mean().backward()
    found = {name: parameter.grad.cpu() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return {"logits": logits.detach().float().cpu(), **found}


def relative(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Length of the difference over the length of what was expected, or of a thousandth of the longest.

    The gradient of a key's bias is only rounding: softmax takes it away.
    """
    assert found.keys() == expected.keys()
    least = 1e-3 * max(float(value.norm()) for value in expected.values())
    return {n: float((found[n] - value).norm() / value.norm().clamp_min(least)) for n, value in expected.items()}


@pytest.mark.parametrize("size", [(224, 224), (100, 150)], ids=["whole windows", "ragged"])
@pytest.mark.parametrize("way", ["eager", "whole", "blocks"])
def test_logits_and_gradients_are_those_of_the_cpu(way: str, size: tuple[int, int]) -> None:
    model = timm.create_model("scalablevit_small", **SHALLOW)
    images = torch.randn(2, 3, *size)
    expected = gradients(model, images)
    model.cuda()
    if way == "blocks":
        compile_blocks(model, "scalablevit_small", one_size=True)
    called = torch.compile(model) if way == "whole" else model
    found = gradients(called, images.cuda())
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    wrong = {name: error for name, error in relative(found, expected).items() if error > 1e-3}
    assert not wrong


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_bfloat16_stays_near_float32(compiled: bool) -> None:
    model = timm.create_model("scalablevit_small", **SHALLOW).cuda().eval()
    images = torch.randn(4, 3, 224, 224, device="cuda")
    with torch.no_grad():
        expected = model(images)
        called = torch.compile(model) if compiled else model
        with torch.autocast("cuda", torch.bfloat16):
            found = called(images)
    assert float((found.float() - expected).norm() / expected.norm()) < 2e-2


def test_no_attention_needs_the_math_kernel() -> None:
    assert fused_only()


def test_more_windows_than_a_grid_axis_holds() -> None:
    assert many_windows()


def test_the_whole_model_is_compiled_without_a_gap() -> None:
    model = timm.create_model("scalablevit_small", **SHALLOW).cuda()
    assert isinstance(model, ScalableViT)
    with torch.autocast("cuda", torch.bfloat16):
        torch.compile(model, backend="aot_eager", fullgraph=True)(torch.randn(2, 3, 64, 64, device="cuda"))
