"""Headless Chromium by its own protocol over a pipe: no driver, no server, no network."""

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
ANSWER_S = 60
MISSING = "there is no chromium on PATH; install Debian's package: apt-get install chromium"
# the protocol's pipe is at file descriptors 3 (commands) and 4 (answers)
START = 'exec "${@:3}" 3<&"$1" 4>&"$2"'
OPTIONS = [
    "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


class Tab:
    """One page; what it complains of and asks the network for is kept."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = os.fdopen(commands, "wb", buffering=0)
        self._answers: Queue[dict[str, Any]] = Queue()
        self._number = 0
        self.session = ""
        self.events: list[dict[str, Any]] = []
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self._commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, file: Path, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Load a file in a window of the given size, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """What JavaScript makes of an expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console."""
        kinds = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [json.dumps(event["params"]) for event in self.events if event.get("method") in kinds]

    def requests(self) -> list[str]:
        """Addresses that were asked for, but what the page carries in itself."""
        asked = [event["params"]["request"]["url"] for event in self.events
                 if event.get("method") == "Network.requestWillBeSent"]  # fmt: skip
        return [url for url in asked if not url.startswith("data:")]

    def screenshot(self, file: Path) -> None:
        """The whole page, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def _next(self) -> dict[str, Any]:
        try:
            return self._answers.get(timeout=ANSWER_S)
        except Empty:
            raise TimeoutError(f"chromium has not answered for {ANSWER_S} s") from None

    def _read(self, answers: int) -> None:
        rest = b""
        with os.fdopen(answers, "rb", buffering=0) as pipe:
            while part := pipe.read(1 << 16):
                *whole, rest = (rest + part).split(b"\0")
                for message in whole:
                    self._answers.put(json.loads(message))


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh browser, which ends with the context.

    Raises:
        RuntimeError: there is no chromium.
    """
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise RuntimeError(MISSING)
    (read_commands, commands), (answers, write_answers) = os.pipe(), os.pipe()
    command = [program, *OPTIONS, f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        ["bash", "-c", START, "chromium", str(read_commands), str(write_answers), *command],
        pass_fds=(read_commands, write_answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(read_commands)
    os.close(write_answers)
    tab = Tab(commands, answers)
    try:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        tab.session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        browser.terminate()
        try:
            browser.wait(timeout=20)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
