"""What native decoders say of damage that they pass over: they write it to standard error, and nowhere else."""

import os
import tempfile
import warnings


class StderrCapture:
    """Takes this process's standard error for itself, so that what a decoder writes can be told from file to file.

    For processes that do nothing but decode, one file at a time. Python's own warnings are silenced: they are about
    metadata.
    """

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # open until the process ends
        os.dup2(self._file.fileno(), 2)

    def take(self) -> str:
        """What was written since the last call, on one line."""
        self._file.seek(0)
        said = " ".join(self._file.read().decode(errors="replace").split())
        self._file.seek(0)
        self._file.truncate()
        return said
