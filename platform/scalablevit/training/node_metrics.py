"""Samples CPU, memory and GPU metrics of a worker's node, in a thread that no training step waits for."""

import os
import threading

import psutil
import torch

PERIOD_S = 5.0
"""Seconds between two samples."""


class NodeSampler:
    """Keeps the latest metrics of the node, from a thread; reading them takes no time.

    Args:
        device: the worker's device; on CUDA its memory is sampled, too.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._latest: dict[str, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-metrics", daemon=True)
        self._thread.start()

    def latest(self) -> dict[str, float]:
        """Return the last sample: fractions of CPU and memory, the load by CPU, and GiB for names with `_gib`."""
        return dict(self._latest)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join(timeout=PERIOD_S)

    def _run(self) -> None:
        psutil.cpu_percent()  # the first call has no interval to measure
        while not self._stopped.wait(0.5 if not self._latest else PERIOD_S):
            self._latest = self._sample()

    def _sample(self) -> dict[str, float]:
        memory = psutil.virtual_memory()
        metrics = {
            "cpu_used": psutil.cpu_percent() / 100,
            "memory_used": memory.percent / 100,
            "memory_used_gib": (memory.total - memory.available) / 2**30,
            "process_memory_gib": self._process.memory_info().rss / 2**30,
            "load_per_cpu": os.getloadavg()[0] / (os.cpu_count() or 1),
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            metrics["gpu_memory_used"] = 1 - free / total
            metrics["gpu_peak_allocated_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        return metrics
