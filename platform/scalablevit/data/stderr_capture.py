"""Capture of standard error, the only place where native decoders report damage that they pass over."""

import os
import tempfile
import warnings


class StderrCapture:
    """Redirects this process's standard error to a file, so that a decoder's messages can be assigned to images.

    For processes that do nothing but decode, one file at a time. Python's own warnings are silenced: they are about
    metadata.
    """

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open until the process ends
        os.dup2(self._file.fileno(), 2)

    def take(self) -> str:
        """Return what was written since the last call, on one line."""
        self._file.seek(0)
        text = " ".join(self._file.read().decode(errors="replace").split())
        self._file.seek(0)
        self._file.truncate()
        return text
