"""How a training process holds memory that tensors have given back."""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Parameters of glibc's `mallopt`, from its malloc.h."""
_KEPT_BYTES = 2**31 - 1
"""Free at the heap's end before it is returned; the most that `mallopt` takes."""
_GROWTH_BYTES = 2**26


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next step, in this process; a CPU's tensors come from it.

    By default it returns large blocks to the system when a tensor is freed and gets them anew, page by page, for the
    same tensor of the next step: 6 % of a step of the CamVid recipe. The process then stays as large as its largest
    step, which the machine must hold anyway.

    Returns:
        Whether it was done: with glibc only.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT_BYTES, _TOP_PAD: _GROWTH_BYTES}
    return mallopt is not None and all(mallopt(name, value) == 1 for name, value in wanted.items())
