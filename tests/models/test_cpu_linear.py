"""Linear layers through oneDNN: torch's private operator, and each place that must not meet it."""

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scalablevit.config.loading import load_recipe
from scalablevit.models import cpu_linear
from scalablevit.models.cpu_linear import OneDNNLinear, fastest_for, is_available, use_library

pytestmark = pytest.mark.skipif(not is_available(), reason="this torch has no oneDNN")

DEMO = Path(__file__).parents[2] / "pipelines" / "recipes" / "demo.yaml"
ZEN5 = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nflags\t\t: fpu avx2 avx512f avx512bw\n\nprocessor\t: 1\n"


def layers(inputs: int = 40, outputs: int = 24, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=bias)
    ours = copy.deepcopy(plain)
    use_library(ours, "onednn")
    return plain, ours


def calls_of(action: Callable[[nn.Linear], Any]) -> int:
    """Return how often the operator is called."""
    with patch.object(cpu_linear, "_multiply", wraps=cpu_linear._multiply) as operator:
        action(layers()[1])
    return operator.call_count


def test_the_operator_of_this_torch_is_the_one_that_is_called() -> None:
    """The contract: if torch changes it, this fails before anything is trained."""
    schema = str(getattr(torch.ops.mkldnn, cpu_linear.OPERATOR).default._schema)
    arguments = "Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm"
    assert schema == f"mkldnn::_linear_pointwise({arguments}) -> Tensor Y"
    x, weight, bias = torch.randn(5, 7), torch.randn(3, 7), torch.randn(3)
    torch.testing.assert_close(cpu_linear._multiply(x, weight, bias), functional.linear(x, weight, bias))
    torch.testing.assert_close(cpu_linear._multiply(x, weight), functional.linear(x, weight))
    turned = torch.randn(7, 3).t()
    torch.testing.assert_close(cpu_linear._multiply(x, turned), functional.linear(x, turned))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [False, True])
def test_outputs_and_gradients_are_torchs_within_rounding(bias: bool, turned: bool) -> None:
    plain, ours = layers(bias=bias)
    results = []
    for layer in (plain, ours):
        torch.manual_seed(1)
        x = torch.randn(40, 6, 5).permute(1, 2, 0) if turned else torch.randn(6, 5, 40)
        x.requires_grad_()
        out = layer(x)
        (out * torch.linspace(-1, 1, 24)).square().sum().backward()
        results.append((out, x.grad, *(parameter.grad for parameter in layer.parameters())))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_only_what_needs_a_gradient_gets_one() -> None:
    _, ours = layers()
    ours.weight.requires_grad_(False)
    ours(torch.randn(3, 40)).sum().backward()
    assert ours.weight.grad is None and torch.equal(ours.bias.grad, torch.full((24,), 3.0))
    x = torch.randn(3, 40, requires_grad=True)
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_names_state_and_other_layers_stay() -> None:
    class OwnLinear(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 3), OwnLinear(3, 3), nn.MultiheadAttention(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    use_library(model, "torch")
    assert type(model[0]) is nn.Linear
    use_library(model, "onednn")
    assert type(model[0]) is OneDNNLinear and type(model[1]) is OwnLinear
    assert type(model[2].out_proj) is not OneDNNLinear
    assert list(before) == list(model.state_dict())
    assert type(copy.deepcopy(model)[0]) is OneDNNLinear
    model.load_state_dict(before)


def test_eager_float32_is_computed_by_the_operator() -> None:
    """The others below are known to miss it only because this one meets it."""
    assert calls_of(lambda layer: layer(torch.randn(2, 40))) == 1
    assert calls_of(lambda layer: layer(torch.randn(2, 40)).sum().backward()) == 2, "x needs no gradient"
    with torch.inference_mode():
        assert calls_of(lambda layer: layer(torch.randn(2, 40))) == 1


def in_autocast(layer: nn.Linear) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 40)).dtype == torch.bfloat16


def compiled(layer: nn.Linear) -> None:
    with patch.object(torch._dynamo.config, "suppress_errors", False):
        torch.compile(layer, backend="aot_eager", fullgraph=True)(torch.randn(2, 40)).sum().backward()


def exported(layer: nn.Linear) -> None:
    for strict in (False, True):
        program = torch.export.export(layer, (torch.randn(2, 40),), strict=strict)
        assert "mkldnn" not in str(program.graph)


def to_onnx(layer: nn.Linear) -> None:
    torch.onnx.export(layer, (torch.randn(2, 40),), dynamo=True, verbose=False)
    torch.onnx.export(layer, (torch.randn(2, 40),), io.BytesIO(), dynamo=False)


def counted(layer: nn.Linear) -> None:
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(2, 40)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * (2 * 40 * 24), "forward, and the gradient of the weight"


def fake(layer: nn.Linear) -> None:
    """Inside and outside of the mode, as memory is estimated; and on meta tensors, as costs are counted."""
    mode, x = FakeTensorMode(), torch.randn(2, 40)
    for make, context in ((mode.from_tensor, mode), (mode.from_tensor, nullcontext()), (to_meta, nullcontext())):
        values = {name: make(parameter) for name, parameter in layer.named_parameters()}
        with context:
            assert torch.func.functional_call(layer, values, make(x)).shape == (2, 24)


def to_meta(tensor: Tensor) -> Tensor:
    return tensor.to("meta")


def transformed(layer: nn.Linear) -> None:
    assert torch.func.vmap(layer)(torch.randn(3, 2, 40)).shape == (3, 2, 24)


def in_float64(layer: nn.Linear) -> None:
    layer.double()(torch.randn(2, 40, dtype=torch.float64))


def on_nothing(layer: nn.Linear) -> None:
    assert layer(torch.empty(0, 40)).shape == (0, 24)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "place", [in_autocast, compiled, exported, to_onnx, counted, fake, transformed, in_float64, on_nothing]
)
def test_it_is_off_where_it_would_break_or_miscount(place: Callable[[nn.Linear], None]) -> None:
    assert calls_of(place) == 0


@pytest.mark.parametrize(
    ("cpuinfo", "library"),
    [
        (ZEN5, "onednn"),
        (ZEN5.replace("26", "27"), "onednn"),
        (ZEN5.replace("26", "25"), "torch"),
        (ZEN5.replace("26", "unknown"), "torch"),
        (ZEN5.replace("avx512f avx512bw", ""), "torch"),
        (ZEN5.replace("AuthenticAMD", "GenuineIntel"), "torch"),
        (ZEN5.replace("AuthenticAMD", "HygonGenuine"), "torch"),
        ("processor\t: 0\nFeatures\t: fp asimd\n", "torch"),
        ("", "torch"),
    ],
)
def test_the_rule(cpuinfo: str, library: str) -> None:
    assert fastest_for(cpuinfo) == library


def test_bits_do_not_depend_on_threads_or_place() -> None:
    _, ours = layers()
    x, before = torch.randn(65, 40), torch.get_num_threads()
    shifted = torch.empty(65 * 40 + 1)[1:].view(65, 40).copy_(x)
    results: list[Tensor] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results += [ours(x), ours(shifted), copy.deepcopy(ours)(x)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results)


def test_a_model_without_the_library_predicts_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    stage = load_recipe(DEMO).stages["pretrain"]
    chosen = stage.model_copy(update={"training": stage.training.model_copy(update={"cpu_linear": "onednn"})})
    assert cpu_linear.evaluated_library(chosen) == "onednn"
    assert cpu_linear.evaluated_library(stage) == "torch", "auto: nobody has evaluated with anything"
    with patch.object(cpu_linear, "is_available", return_value=False):
        assert cpu_linear.evaluated_library(chosen) == "torch"
    assert "no oneDNN" in caplog.text
