"""Fixtures of this folder."""

from harness.finished_runs import one_thread, root

__all__ = ["one_thread", "root"]
