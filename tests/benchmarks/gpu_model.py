"""The rows of bench_model.py that need a GPU: ScalableViT-S in bf16 against its plain form and timm's Swin-T.

Each side lives in a process of its own, so that all compile at the same time; then they are timed in turn.
"""

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import timm
import torch
from benchmarks.plain_scalablevit import PlainScalableViT
from benchmarks.rows import Row
from benchmarks.timing import interleaved, speed_up, spread
from torch import Tensor, nn
from torch.nn import functional

from scalablevit.models import attention
from scalablevit.models.attention import CUDA_BATCH_LIMIT, WindowAttention

SWIN = "swin_tiny_patch4_window7_224"
BATCH = 128
CALLS = 5
"""In a turn: what asking the other process takes is then nothing beside them."""
LIMIT_S = 1800
"""For a side to compile."""

PLAIN_EAGER = f"plain form, eager, bf16 autocast, batch {BATCH}"
SWIN_COMPILED = f"timm's {SWIN}, compiled, bf16 autocast, batch {BATCH}"
METRICS = {
    "GPU training step": (2.0, PLAIN_EAGER),
    "GPU training step against Swin-T": (1.0, SWIN_COMPILED),
    "GPU inference": (2.5, PLAIN_EAGER),
    "GPU inference against Swin-T": (1.0, SWIN_COMPILED),
    "GPU attention without the math backend": (1.0, "1: a training step runs with fused kernels only"),
    "GPU batch x windows above 65,535": (1.0, "1: equals the batch in two halves"),
}
SIDES: dict[str, Callable[[], nn.Module]] = {
    "ours": lambda: torch.compile(timm.create_model("scalablevit_small").cuda()),  # as `training.compile: true` does
    "plain": lambda: PlainScalableViT().cuda(),
    "swin": lambda: torch.compile(timm.create_model(SWIN, drop_path_rate=0.2).cuda()),
}


def gpu_rows(quick: bool, settings: dict[str, Any]) -> list[Row]:
    if not torch.cuda.is_available():
        return [Row(name, bar, None, baseline, note="no GPU") for name, (bar, baseline) in METRICS.items()]
    measured = {
        "GPU attention without the math backend": float(fused_only()),
        "GPU batch x windows above 65,535": float(many_windows()),
        **speeds(5 if quick else 20, settings),
    }
    return [Row(name, bar, measured[name], baseline) for name, (bar, baseline) in METRICS.items()]


def speeds(rounds: int, settings: dict[str, Any]) -> dict[str, float]:
    """The four ratios."""
    context = multiprocessing.get_context("spawn")
    lines = {name: context.Pipe() for name in SIDES}
    processes = [context.Process(target=side, args=(name, theirs)) for name, (_, theirs) in lines.items()]
    asked = {name: ours for name, (ours, _) in lines.items()}
    settings["GPU"] = {"clock": "wall time, synchronised", "batch": BATCH, "calls in a turn": CALLS}
    ratios = {}
    try:
        for process, (_, theirs) in zip(processes, lines.values(), strict=True):
            process.start()
            theirs.close()  # or a side that has died would be waited for
        for work in ("training step", "inference"):
            for line in asked.values():
                line.send(work)
            compiling = {name: answer(line) for name, line in asked.items()}
            seconds = interleaved(
                {n: partial(ask, line, work) for n, line in asked.items()}, rounds, 1, time.perf_counter
            )
            ratios[f"GPU {work}"] = speed_up(seconds, "ours", "plain")
            ratios[f"GPU {work} against Swin-T"] = speed_up(seconds, "ours", "swin")
            settings["GPU"][work] = {"first_calls_s": compiling, "turns": spread(seconds)}
            print(f"GPU {work}, first calls and {CALLS} calls in s: {settings['GPU'][work]}", flush=True)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return ratios


def ask(line: "Connection[Any, Any]", work: str) -> float:
    """A turn of one side."""
    line.send(work)
    return answer(line)


def answer(line: "Connection[Any, Any]") -> float:
    if not line.poll(LIMIT_S):
        raise TimeoutError(f"a side has not answered for {LIMIT_S} s")
    return float(line.recv())


def side(name: str, line: "Connection[Any, Any]") -> None:
    """Do what is asked for and send the seconds that it took."""
    torch.manual_seed(0)
    model = SIDES[name]()
    images = torch.randn(BATCH, 3, 224, 224, device="cuda")
    works = {
        "training step": partial(train_step, model, optimizer_of(model), images),
        "inference": partial(infer, model, images),
    }
    while True:
        work = line.recv()
        model.train(work == "training step")
        begun = time.perf_counter()
        for _ in range(CALLS):
            works[work]()
        torch.cuda.synchronize()
        line.send(time.perf_counter() - begun)


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
    kernels = attention.CUDA_KERNELS
    attention.CUDA_KERNELS = kernels[:-1]
    try:
        with torch.nn.attention.sdpa_kernel(attention.CUDA_KERNELS):
            train_step(model, optimizer_of(model), torch.randn(8, 3, 224, 224, device="cuda"))
    except RuntimeError as error:
        print(f"fused kernels only: {error}")
        return False
    finally:
        attention.CUDA_KERNELS = kernels
    return True


@torch.no_grad()
def many_windows() -> bool:
    layer = WindowAttention(64, 2).cuda().bfloat16()
    tokens = torch.randn(CUDA_BATCH_LIMIT // 64 + 2, 56, 56, 64, device="cuda", dtype=torch.bfloat16)
    halves = torch.cat([layer(half) for half in tokens.chunk(2)])
    return torch.allclose(layer(tokens), halves, rtol=2e-2, atol=2e-2)
