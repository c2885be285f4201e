"""The loop, its state, exact recovery, and what Ray runs."""
