"""What a processor or GPU is sold as."""

import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the name of a device's GPU or of this machine's CPU; its architecture where the system has no name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1].strip() if named else platform.machine()
