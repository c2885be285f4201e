"""Fixtures of this folder."""

from harness.signal_handlers import handlers

__all__ = ["handlers"]
