"""Capture of standard error, the only place where native decoders report damage that they tolerate."""

import os
import tempfile
import warnings


class StderrCapture:
    """Redirects this process's standard error to a temporary file, so that a decoder's messages belong to one image.

    It is for processes that only decode, one image at a time. Python's own warnings are ignored: they are about
    metadata.
    """

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open until the process ends
        os.dup2(self._file.fileno(), 2)

    def take(self) -> str:
        """Return the text since the last call, on one line; empty if there is none."""
        self._file.seek(0)
        text = " ".join(self._file.read().decode(errors="replace").split())
        self._file.seek(0)
        self._file.truncate()
        return text
