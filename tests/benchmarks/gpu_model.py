"""The rows of bench_model.py that need a GPU: ScalableViT-S in bf16 against its plain form and timm's Swin-T."""

import time
from functools import partial
from typing import Any

import timm
import torch
from plain_scalablevit import PlainScalableViT
from rows import Row
from timing import interleaved, speed_up, spread
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit.models.attention import CUDA_BATCH_LIMIT, WindowAttention

SWIN = "swin_tiny_patch4_window7_224"
BATCH = 128
FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]

PLAIN_EAGER = f"plain form, eager, bf16 autocast, batch {BATCH}"
SWIN_COMPILED = f"timm's {SWIN}, compiled, bf16 autocast, batch {BATCH}"
FIGURES = {
    "GPU training step": (2.0, PLAIN_EAGER),
    "GPU training step against Swin-T": (1.0, SWIN_COMPILED),
    "GPU inference": (2.5, PLAIN_EAGER),
    "GPU inference against Swin-T": (1.0, SWIN_COMPILED),
    "GPU attention without the math backend": (1.0, "1: a training step runs with fused kernels only"),
    "GPU batch x windows above 65,535": (1.0, "1: equals the batch in two halves"),
}


def gpu_rows(quick: bool, settings: dict[str, Any]) -> list[Row]:
    if not torch.cuda.is_available():
        return [Row(name, bar, None, baseline, note="no GPU") for name, (bar, baseline) in FIGURES.items()]
    measured = {
        **speeds(5 if quick else 20, settings),
        "GPU attention without the math backend": float(fused_only()),
        "GPU batch x windows above 65,535": float(many_windows()),
    }
    return [Row(name, bar, measured[name], baseline) for name, (bar, baseline) in FIGURES.items()]


def speeds(rounds: int, settings: dict[str, Any]) -> dict[str, float]:
    """The four ratios; ours is compiled as `training.compile: true` does it."""
    models = {
        "ours": torch.compile(timm.create_model("scalablevit_small").cuda()),
        "plain": PlainScalableViT().cuda(),
        "swin": torch.compile(timm.create_model(SWIN, drop_path_rate=0.2).cuda()),
    }
    images = torch.randn(BATCH, 3, 224, 224, device="cuda")
    steps = {name: partial(train_step, model, optimizer_of(model), images) for name, model in models.items()}
    training = interleaved(steps, rounds, warm_up=5, clock=gpu_clock)
    for model in models.values():
        model.eval()
    passes = {name: partial(infer, model, images) for name, model in models.items()}
    inference = interleaved(passes, rounds, warm_up=5, clock=gpu_clock)
    settings["GPU"] = {"clock": "wall time, synchronised", "batch": BATCH, "ours": "whole model compiled",
                       "training step": spread(training), "inference": spread(inference)}  # fmt: skip
    return {
        "GPU training step": speed_up(training, "ours", "plain"),
        "GPU training step against Swin-T": speed_up(training, "ours", "swin"),
        "GPU inference": speed_up(inference, "ours", "plain"),
        "GPU inference against Swin-T": speed_up(inference, "ours", "swin"),
    }


def gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    labels = torch.arange(len(images), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def infer(model: nn.Module, images: Tensor) -> Tensor:
    with torch.autocast("cuda", torch.bfloat16):
        return model(images)


def fused_only() -> bool:
    """Whether no attention of a training step needs the math backend; torch refuses where none of the others can."""
    model = timm.create_model("scalablevit_small").cuda()
    try:
        with sdpa_kernel(FUSED):
            train_step(model, optimizer_of(model), torch.randn(8, 3, 224, 224, device="cuda"))
    except RuntimeError as error:
        print(f"fused kernels only: {error}")
        return False
    return True


@torch.no_grad()
def many_windows() -> bool:
    layer = WindowAttention(64, 2).cuda().bfloat16()
    tokens = torch.randn(CUDA_BATCH_LIMIT // 64 + 2, 56, 56, 64, device="cuda", dtype=torch.bfloat16)
    halves = torch.cat([layer(half) for half in tokens.chunk(2)])
    return torch.allclose(layer(tokens), halves, rtol=2e-2, atol=2e-2)
