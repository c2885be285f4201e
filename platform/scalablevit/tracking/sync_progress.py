"""How far an outbox has been sent, as its folder has it; free of what sends it, so that Ray's controller can ask."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scalablevit.io import write_file
from scalablevit.run_files import RECORDS, SENT


@dataclass
class SyncProgress:
    """How far an outbox has been sent to a server: `shipped.json`."""

    uri: str
    """The server's address without credentials; another server gets everything from the start."""
    offset: int = 0
    """Bytes of the outbox whose records have arrived or were set aside."""
    runs: dict[str, str] = field(default_factory=dict)
    """MLflow run id by our uid."""

    @classmethod
    def load(cls, folder: Path, uri: str) -> "SyncProgress":
        """Return the saved progress for this server, else a new one: MLflow ignores what is then sent again."""
        saved = load_progress(folder)
        return saved if saved is not None and saved.uri == uri else cls(uri)

    def save(self, folder: Path) -> None:
        """Write the progress to the outbox's folder; the file is replaced as a whole."""
        write_file(folder / SENT, json.dumps(asdict(self)).encode(), durable=False)


def load_progress(folder: Path) -> SyncProgress | None:
    """Return where an outbox was sent last, and how far; None where it is unknown."""
    try:
        saved = SyncProgress(**json.loads((folder / SENT).read_bytes()))
        size = (folder / RECORDS).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return saved if saved.offset <= size else None
