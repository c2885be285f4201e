"""Notifies people of the events that a recipe names: records in outboxes of their own, which nothing waits for."""

import html
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scalablevit.config.commands import command_line
from scalablevit.config.recipe import Event, Stage
from scalablevit.run_files import NOTIFICATIONS, RECORDS
from scalablevit.tracking.connection import Away, Refused, format_error
from scalablevit.tracking.mlflow_writer import Refusal
from scalablevit.tracking.notify_settings import CHANNELS, VARIABLE, NotifySettings, load_settings
from scalablevit.tracking.outbox import Line, Outbox, now_ms
from scalablevit.tracking.records import NotificationRecord, UnreadLine
from scalablevit.tracking.sync import UNCLEAR_TRIES, OrderedSync
from scalablevit.tracking.webhook import post

COMMAND_S = 10.0
"""Longest time in seconds that the command may take."""
COMMAND_VARIABLES = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER")
"""What the command gets of the environment: all else may be a secret."""
DRAIN_S = 10.0
"""Longest wait in seconds, when all work is done, for the last notifications to be sent; later ones wait on disk."""
OLDEST_MS = 7 * 24 * 3600 * 1000
"""Age in milliseconds from which a notification is news to nobody, and is set aside."""


@dataclass(frozen=True)
class Notifier:
    """Records what happens to a run, if its recipe asks for it; whatever goes wrong is printed and ends nothing."""

    root: Path
    """The platform's root."""
    events: Sequence[Event]
    """The recipe's `tracking.notify`."""
    run: str
    """Name of the run."""
    stage: str | None
    """Name of the stage; None: it concerns a registered version."""
    place: str
    """The run's folder, or the registry; without credentials."""

    def record(
        self, event: Event, metric: str | None = None, value: float | None = None, *,
        model: str | None = None, version: int | None = None, uid: str = "",
    ) -> None:  # fmt: skip
        """Record an event; for `metric` to `version` see `NotificationRecord`.

        Args:
            event: what happened.
            metric, value, model, version: as in the record.
            uid: id of the notification, by which receivers know a repetition; empty: a new one.
        """
        if event not in self.events:
            return
        try:
            settings = load_settings()
            finite = value if value is not None and math.isfinite(value) else None
            where = f"{socket.gethostname()}: {self.place}"
            record = NotificationRecord(uid or uuid.uuid4().hex, now_ms(), event, self.run, self.stage, where,
                                        metric, finite, model, version)  # fmt: skip
            for channel in settings.channels():
                with closing(Outbox(self.root / NOTIFICATIONS / channel)) as outbox:
                    outbox.notification(record)
        except Exception as error:  # no run ends because nobody heard of it
            why = format_error(error, "")
            print(f"{self.run}: nobody is notified of {event!r}: {why}", file=sys.stderr, flush=True)


def format_json(record: NotificationRecord) -> bytes:
    """Return a notification as the stable JSON that commands and webhooks get; it holds nothing of the data."""
    when = datetime.fromtimestamp(record.time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    facts = {name: value for name, value in vars(record).items() if name not in ("uid", "time_ms")}
    return json.dumps({"format": 1, "id": record.uid, "time": when, **facts}, allow_nan=False).encode()


def format_text(record: NotificationRecord) -> str:
    """Return a notification as one line for people."""
    stage = f" (stage {record.stage})" if record.stage else ""
    name = (record.metric or "").removeprefix("val/")
    metric = f", {name} {record.value:.4f}" if record.value is not None else ""
    version = f" version {record.version}" if record.version is not None else ""
    model = f", model {record.model}{version}" if record.model else ""
    return f"{record.event}: {record.run}{stage}{metric}{model}, at {record.where}"


def format_body(record: NotificationRecord, format_: str) -> bytes:
    """Return what is posted, in one of `notify_settings.FORMATS`."""
    text = format_text(record)
    if format_ == "slack":  # escaped, else a name could address a channel
        return json.dumps({"text": html.escape(text, quote=False), "mrkdwn": False}).encode()
    if format_ == "teams":  # a text run is shown as it is, where a text block would read Markdown
        lines = [{"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": text}]}]
        card = {"type": "AdaptiveCard", "version": "1.2", "body": lines}
        content = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
        return json.dumps({"type": "message", "attachments": [content]}).encode()
    return format_json(record)


class NotificationSync(OrderedSync):
    """Sends the notifications of one of `CHANNELS`, whose outbox must exist.

    Args:
        root: the platform's root.
        channel: one of `CHANNELS`.
        settings: the operator's.
    """

    def __init__(self, root: Path, channel: str, settings: NotifySettings) -> None:
        super().__init__(root / NOTIFICATIONS / channel, channel)
        self._channel = channel
        self._settings = settings

    def _send(self, lines: Sequence[Line]) -> list[Refusal]:
        record = lines[0].record
        if not isinstance(record, NotificationRecord):
            return [Refusal(record or UnreadLine(lines[0].raw), "no notification that this version can read")]
        if now_ms() - record.time_ms > OLDEST_MS:
            return [Refusal(record, "it has waited for more than seven days")]
        settings = self._settings
        if self._channel not in settings.channels():
            raise Away(f"{VARIABLE}{self._channel.upper()} is not set")
        if self._channel == "command":  # it may have done half of its work, so it is not tried for ever
            why = run_command(settings.command, format_json(record))
            self._unclear += 1
            if why and self._unclear < UNCLEAR_TRIES:
                raise Away(why)
            return [Refusal(record, why)] if why else []
        try:
            body = format_body(record, settings.format)
            post(settings.webhook, settings.key, record.uid, body, allow_http=settings.allow_http)
        except Refused as refused:
            return [Refusal(record, str(refused))]
        return []


def run_command(command: Sequence[str], message: bytes) -> str:
    """Run a command without a shell, for `COMMAND_S` at most, with a message on stdin; return why it failed, or ""."""
    environment = {name: value for name, value in os.environ.items() if name in COMMAND_VARIABLES}
    try:  # its output is dropped, since it may show secrets
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   cwd="/", env=environment, start_new_session=True)  # fmt: skip
    except OSError as error:
        return f"it cannot be started: {error.strerror}"
    try:
        process.communicate(message, COMMAND_S)
    except subprocess.TimeoutExpired:
        return f"it took more than {COMMAND_S:g} s and was killed"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started; nobody has waited for it, so it is there
            process.wait()
    return f"it ended with exit code {process.returncode}" if process.returncode else ""


def notification_syncs(root: Path) -> dict[Path, NotificationSync]:
    """Return a sync for each folder of notifications below a root; without the settings, it says so in its error.

    Raises:
        UserError: as `load_settings`.
    """
    folders = [root / NOTIFICATIONS / channel for channel in CHANNELS]
    used = [folder for folder in folders if (folder / RECORDS).is_file()]
    settings = load_settings() if used else NotifySettings()
    return {folder: NotificationSync(root, folder.name, settings) for folder in used}


@contextmanager
def sending_notifications(root: Path, stages: Iterable[Stage]) -> Iterator[None]:
    """Send notifications while the block lasts, those of earlier jobs below this root, too.

    Args:
        root: the platform's root.
        stages: if none of them asks for notifications, nothing is sent.

    Raises:
        UserError: as `load_settings`.
    """
    settings = load_settings() if any(stage.tracking.notify for stage in stages) else NotifySettings()
    syncs: list[NotificationSync] = []
    for channel in settings.channels():
        try:
            Outbox(root / NOTIFICATIONS / channel).close()  # a file to read
            syncs.append(NotificationSync(root, channel, settings))
            syncs[-1].start()
        except OSError as error:
            print(f"nobody is notified by {channel}: {error}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        deadline = time.monotonic() + DRAIN_S
        for sync in syncs:
            with suppress(OSError):  # the work is done, whatever its disk does now
                if sync.drain(max(0.0, deadline - time.monotonic())).records:
                    print(f"notifications by {sync.status()}; `{command_line('sync')}` sends them", flush=True)
            sync.stop(0.0)
