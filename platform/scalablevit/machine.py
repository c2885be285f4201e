"""Which machine this is, for files that several machines or later starts read."""

import hashlib
import re
import socket
from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
"""File with an id of the machine that stays (32 hexadecimal digits, of systemd); not on every system."""


def machine_id() -> str:
    """Return a digest of this machine's `MACHINE_ID`, 32 hexadecimal digits; empty where it has none."""
    try:
        content = MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    if not re.fullmatch("[0-9a-f]{32}", content):  # an image's, which is empty or "uninitialized" until it starts
        return ""
    return hashlib.sha256(f"scalablevit {content}".encode()).hexdigest()[:32]  # systemd asks not to show the id itself


def machine_name() -> str:
    """Return what tells this machine from others: its host name, and after a blank its `machine_id()` if it has one."""
    return f"{socket.gethostname()} {machine_id()}".rstrip()


def is_this_machine(name: str) -> bool:
    """Return whether a `machine_name()` is this machine's: by the ids where both have one, else by the host names.

    A container has a new host name at each start: it stays the same machine where the node's `MACHINE_ID` is mounted.
    """
    host, _, recorded_id = name.partition(" ")
    own_id = machine_id()
    return recorded_id == own_id if recorded_id and own_id else host == socket.gethostname()
