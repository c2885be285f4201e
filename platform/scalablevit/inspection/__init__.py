"""Looking at data before training: what it holds, and what is wrong with it."""
