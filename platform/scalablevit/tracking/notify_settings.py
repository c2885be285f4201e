"""How people are notified: what the operator of a job, never a recipe, has set in its environment or in a file."""

import base64
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from scalablevit.config.errors import UserError
from scalablevit.config.root import refuse_session_folder

VARIABLE = "SCALABLEVIT_NOTIFY_"
"""Begins the names of the environment variables."""
CHANNELS = ("webhook", "command")
"""The channels to people, which are settings; each has an outbox of its name, so that none waits for the other."""
FORMATS = ("json", "slack", "teams")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts that http:// may name; the address that they lead to is checked, too, when it is called."""
SHORTEST_KEY = 16
"""Fewest bytes of the key that messages are signed with."""
_DEFAULTS = {"webhook": "", "secret": "", "format": "json", "allow_http": "0", "command": ""}
"""By the keys of the file; in capitals, they end the variables' names."""


@dataclass(frozen=True)
class NotifySettings:
    """Whom to notify, and how; its texts hold nothing that may be a secret."""

    webhook: str = field(default="", repr=False)
    """Address to post to; empty: none."""
    key: bytes = field(default=b"", repr=False)
    """Signs what is posted; empty: nothing is signed."""
    format: str = "json"
    """One of `FORMATS`."""
    allow_http: bool = False
    """Whether http:// may leave this machine."""
    command: tuple[str, ...] = field(default=(), repr=False)
    """Program, by its absolute path, and its arguments; empty: none."""

    def channels(self) -> list[str]:
        """Return those of `CHANNELS` that are set."""
        return [channel for channel in CHANNELS if getattr(self, channel)]

    def __str__(self) -> str:
        """Return whom notifications go to, in words."""
        webhook = f"the webhook ({self.format}, {'signed' if self.key else 'not signed'})"
        channels = [webhook] * bool(self.webhook) + ["the command"] * bool(self.command)
        return " and ".join(channels) or f"nobody: {VARIABLE}WEBHOOK and {VARIABLE}COMMAND are not set"


def load_settings(environment: Mapping[str, str] = os.environ) -> NotifySettings:
    """Return the settings: of the JSON file that the environment names, and of its other variables, which win.

    Raises:
        UserError: a setting is of no use; values that may be secrets are not shown.
    """
    given = {**_DEFAULTS, **_read_file(environment.get(f"{VARIABLE}FILE", ""))}
    given |= {key: value for key in given if (value := environment.get(VARIABLE + key.upper()))}
    webhook, secret, chosen, http, command = given.values()
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise _mistake("command", f"not readable as a command: {error}", "quote it as for a shell") from None
    for usable, name, what, fix in (
        (chosen in FORMATS, "format", f"{chosen!r} is no format", f"write one of: {', '.join(FORMATS)}"),
        (http in ("0", "1"), "allow_http", f"{http!r} is neither 0 nor 1", "write 1 to allow http://"),
        (not webhook or _is_address(webhook, http == "1"), "webhook",
         "what it holds is no https:// address (it is not shown: it may be a secret)",
         "write https://<host>/<path>, without user and password; http:// is for 127.0.0.1, or needs "
         f"{VARIABLE}ALLOW_HTTP=1"),
        (not secret or len(key) >= SHORTEST_KEY, "secret", f"it is not base64 of {SHORTEST_KEY} bytes or more",
         "openssl rand -base64 32"),
        (secret or not webhook or chosen != "json", "secret", "not set, and what is posted as json is signed with it",
         "set it here and at the receiver, to what openssl rand -base64 32 prints"),
        (not words or Path(words[0]).is_absolute(), "command", "its program is not named by an absolute path",
         "write the whole path of a program outside what is uploaded; no shell starts it"),
    ):  # fmt: skip
        if not usable:
            raise _mistake(name, what, fix)
    return NotifySettings(webhook, key, chosen, http == "1", words)


def _mistake(key: str, what: str, fix: str) -> UserError:
    return UserError(what, where=VARIABLE + key.upper(), fix=fix)


def _read_file(file: str) -> dict[str, str]:
    if not file:
        return {}
    if not Path(file).is_absolute():  # a job's current folder is what was uploaded
        raise _mistake("file", f"{file} is relative", "write the whole path of a file outside what is uploaded")
    refuse_session_folder(file, f"{VARIABLE}FILE")
    try:
        given = json.loads(Path(file).read_bytes())
    except (OSError, ValueError) as error:  # its text may show a line
        raise _mistake("file", f"{file} is not readable as JSON: {type(error).__name__}", "write it again") from None
    if (
        not isinstance(given, dict)
        or set(given) - set(_DEFAULTS)
        or not all(isinstance(v, str) for v in given.values())
    ):
        raise _mistake("file", f"{file} holds no object of texts", f"its keys are {', '.join(_DEFAULTS)}")
    return given


def _is_address(text: str, allow_http: bool) -> bool:
    try:
        url = urlsplit(text)
        usable = bool(url.hostname) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        return False
    http = url.scheme == "http" and (allow_http or url.hostname in LOOPBACK)
    return usable and (http or url.scheme == "https") and text.isascii() and text.isprintable() and " " not in text
