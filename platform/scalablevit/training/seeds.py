"""Integers from what a draw depends on, so that randomness has no state to save."""

import numpy as np


def derive(*parts: int) -> int:
    """A 63-bit seed from non-negative integers, equal on every machine (never `hash()`)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
