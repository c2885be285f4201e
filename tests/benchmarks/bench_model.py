"""ScalableViT-S at 224 x 224 against its plain form, and where there is a GPU against timm's compiled Swin-T.

    python tests/benchmarks/bench_model.py [--quick] [--gpu]

Without a GPU: bytes and kernels counted on fake tensors, and processor time of one thread, all sides in turn.
"""

import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import timm
import torch
from benchmarks.gpu_model import gpu_rows
from benchmarks.plain_scalablevit import PlainScalableViT, PlainWindowAttention
from benchmarks.rows import Row, benchmark_options, report
from benchmarks.timing import interleaved, speed_up, spread
from benchmarks.traffic import count_forward, count_step
from torch import Tensor, nn
from torch.nn import functional

import scalablevit.models  # noqa: F401  registers the variants
from scalablevit.models.attention import DepthwiseConv, WindowAttention
from scalablevit.models.compilation import compile_blocks
from scalablevit.models.cpu_linear import use_library

COUNTED_SHAPE = (128, 3, 224, 224)
BATCH = 8
WINDOW_BATCH = 32  # one layer alone has room for it


def main() -> int:
    parser = benchmark_options(__doc__)
    parser.add_argument("--gpu", action="store_true", help="only the rows that need a GPU")
    options = parser.parse_args()
    quick = options.quick
    settings: dict[str, Any] = {"model": "scalablevit_small, 224 x 224, stochastic depth 0.2 in training"}
    if options.gpu:
        report("model-gpu", gpu_rows(quick, settings), settings)
        return 0
    torch.set_num_threads(1)
    torch.manual_seed(0)
    times: dict[str, Any] = {}
    rows = counted_rows()
    for part in (inference_rows, step_rows, window_rows, compiled_rows):
        rows += part(5 if quick else 15, times)
    settings |= {
        "counted_batch": COUNTED_SHAPE[0],
        "timed_batch": {"model": BATCH, "IWSA": WINDOW_BATCH},
        "clock": "processor time of one thread",
        "times": times,
    }
    report("model", rows + gpu_rows(quick, settings), settings)
    return 0


def counted_rows() -> list[Row]:
    """What the two forms move, which is the same in every run."""
    with torch.device("meta"):
        models = timm.create_model("scalablevit_small"), PlainScalableViT()
    rows = []
    for work, count, bars in (
        ("forward", count_forward, (0.70, 0.77)),
        ("forward + backward", count_step, (0.75, 0.70)),
    ):
        ours, plain = (count(model, COUNTED_SHAPE) for model in models)
        mib = plain.moved_bytes / COUNTED_SHAPE[0] / 2**20
        kernels = plain.kernels.total()
        what = "bf16 autocast" if count is count_forward else "bf16"
        rows += [
            Row(f"bytes moved, {work}", bars[0], ours.moved_bytes / plain.moved_bytes,
                f"plain form, {what}: {mib:.0f} MiB an image", at_most=True),
            Row(f"kernels, {work}", bars[1], ours.kernels.total() / kernels,
                f"plain form, {what}: {kernels} kernels", at_most=True),
        ]  # fmt: skip
    return rows


def both_forms() -> tuple[nn.Module, nn.Module]:
    ours, plain = timm.create_model("scalablevit_small"), PlainScalableViT()
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def inference_rows(rounds: int, times: dict[str, Any]) -> list[Row]:
    ours, plain = (model.eval() for model in both_forms())
    images = torch.randn(BATCH, 3, 224, 224)

    def half() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            ours(images)

    other = copy.deepcopy(ours)
    use_library(other, "onednn")

    # As in evaluation: within an outer region autocast casts the weights once, not in every pass.
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        seconds = interleaved({"ours": partial(ours, images), "plain": partial(plain, images), "bf16": half,
                               "onednn": partial(other, images)}, rounds)  # fmt: skip
    times["inference"] = spread(seconds)
    return [
        Row("CPU inference, float32", 1.10, speed_up(seconds, "ours", "plain"), "plain form"),
        Row("CPU inference, float32, oneDNN", 1.45, speed_up(seconds, "onednn", "ours"), "torch's linear layers"),
        Row("CPU inference, bf16", 1.90, speed_up(seconds, "bf16", "ours"), "our own float32"),
        Row("CPU inference, bf16 to oneDNN", None, speed_up(seconds, "bf16", "onednn"), "our own float32 by oneDNN"),
    ]


def step_rows(rounds: int, times: dict[str, Any]) -> list[Row]:
    """Forward, loss, backward and AdamW."""
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    ways = {
        name: partial(step, model.train(), torch.optim.AdamW(model.parameters(), lr=1e-6), images, labels)
        for name, model in zip(("ours", "plain"), both_forms(), strict=True)
    }
    model = timm.create_model("scalablevit_small").train()
    fused = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    loop = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ways["fused"] = partial(step, model, fused, images, labels)
    other = copy.deepcopy(model)
    use_library(other, "onednn")
    ways["onednn"] = partial(step, other, torch.optim.AdamW(other.parameters(), lr=1e-6, fused=True), images, labels)
    ways["bf16"] = partial(half_step, model, fused, images, labels, DepthwiseConv.forward)
    ways["bf16 before"] = partial(half_step, model, loop, images, labels, nn.Conv2d.forward)
    seconds = interleaved(ways, rounds, warm_up=1)
    times["training step"] = spread(seconds)
    return [
        Row("CPU training step, float32", 1.03, speed_up(seconds, "ours", "plain"), "plain form"),
        Row("CPU training step, float32, fused AdamW", None, speed_up(seconds, "fused", "ours"), "AdamW's loop"),
        Row("CPU training step, float32, oneDNN and fused AdamW", 1.30, speed_up(seconds, "onednn", "ours"),
            "torch's linear layers and AdamW's loop"),
        Row("CPU training step, bf16", 1.05, speed_up(seconds, "bf16", "bf16 before"),
            "with depth-wise convolutions in bf16 and AdamW's loop"),
        Row("CPU training step, bf16 to float32", None, speed_up(seconds, "bf16", "fused"), "our own float32"),
        Row("CPU training step, bf16 to oneDNN", None, speed_up(seconds, "bf16", "onednn"),
            "our own float32 by oneDNN"),
    ]  # fmt: skip


def half_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    convolve: Callable[[Any, Tensor], Tensor],
) -> None:
    """Take the step in bf16 autocast, with this forward pass of the depth-wise convolutions."""
    with patch.object(DepthwiseConv, "forward", convolve):
        step(model, optimizer, images, labels, half=True)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, *, half: bool = False
) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def window_rows(rounds: int, times: dict[str, Any]) -> list[Row]:
    ours, plain = WindowAttention(64, 2), PlainWindowAttention(64, 2)
    plain.load_state_dict(ours.state_dict())
    tokens = torch.randn(WINDOW_BATCH, 56, 56, 64, requires_grad=True)
    forwards: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ours(tokens),
        "plain": lambda: plain(tokens.flatten(1, 2), 56, 56),
    }
    with torch.no_grad():
        forward = interleaved(forwards, rounds)
    both = interleaved({name: partial(backward, way) for name, way in forwards.items()}, rounds)
    times["IWSA of stage 1"] = {"forward": spread(forward), "forward + backward": spread(both)}
    return [
        Row("CPU IWSA of stage 1, forward", 1.50, speed_up(forward, "ours", "plain"), "plain form, float32"),
        Row("CPU IWSA of stage 1, forward + backward", 1.50, speed_up(both, "ours", "plain"), "plain form, float32"),
    ]


def compiled_rows(rounds: int, times: dict[str, Any]) -> list[Row]:
    """`training.compile: blocks` on stage 3, with 20 of the 26 blocks: each kind of block takes long to compile."""
    options: dict[str, Any] = {
        "channels": (256,), "num_heads": (8,), "depths": (20,), "spatial_reductions": (2,), "channel_ratios": (1.25,),
        "head": "linear", "drop_path_rate": 0.0,
    }  # fmt: skip
    models = {name: timm.create_model("scalablevit_small", **options).train() for name in ("compiled", "eager")}
    compile_blocks(models["compiled"], "scalablevit_small", one_size=True)
    images, labels = torch.randn(BATCH, 3, 56, 56), torch.arange(BATCH)  # 14 x 14 tokens
    ways = {
        name: partial(step, model, torch.optim.AdamW(model.parameters(), lr=1e-6), images, labels)
        for name, model in models.items()
    }
    begun = time.perf_counter()
    ways["compiled"]()
    compiling = time.perf_counter() - begun
    seconds = interleaved(ways, rounds, warm_up=1)
    times["compiled blocks of stage 3"] = {"first_step_wall_s": compiling, **spread(seconds)}
    return [
        Row("CPU training step of stage 3, compiled blocks", None, speed_up(seconds, "compiled", "eager"),
            f"the same eagerly, float32; the first step took {compiling:.0f} s")
    ]  # fmt: skip


def backward(forward: Callable[[], Tensor]) -> None:
    forward().sum().backward()


if __name__ == "__main__":
    sys.exit(main())
