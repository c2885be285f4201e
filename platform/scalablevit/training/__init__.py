"""The training loop, its state, checkpoints, and the code that Ray runs on workers."""
