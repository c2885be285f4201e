"""Seeds that are functions of seed, step and rank, so that randomness has no state to save."""

import numpy as np


def derive(*parts: int) -> int:
    """Return a 63-bit seed from non-negative integers, equal on every machine (unlike `hash()`)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
