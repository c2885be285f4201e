"""Client of a model behind `mlflow models serve`: sends encoded images, and reads predictions and the description."""

import base64
import http.client
import ipaddress
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from scalablevit.config.data import MAX_PIXELS
from scalablevit.config.errors import UserError
from scalablevit.config.task_info import TASKS
from scalablevit.data.names import printable
from scalablevit.tasks.output import PredictionDict
from scalablevit.tasks.registry import task_kind

PING_S, PREDICTION_S = 10.0, 120.0
"""Seconds that a server may keep silent: at /ping, and at a prediction."""
LARGEST = 2**28
"""Most bytes of a response."""
MAX_MESSAGE_CHARACTERS = 300
"""Most characters of a server's own message."""


class ImageRefused(Exception):
    """The server works but refuses this image; the message is its reason."""


@dataclass(frozen=True)
class Description:
    """The description that a served model gives of itself."""

    task: str
    """Kind of the task, such as `detection`."""
    classes: tuple[str, ...]
    """Class names, in the order of the network's outputs."""
    max_pixels: int
    """Most pixels of an image that the server takes."""


class _RefuseRedirects(urllib.request.HTTPRedirectHandler):
    """Sends images to the address that the user named, and never on to another one."""

    def redirect_request(self, *_: Any) -> None:
        """Return no new request, so that urllib raises the redirect as an HTTPError."""


class ModelServer:
    """A scoring server of MLflow.

    Args:
        address: the server's address, `http(s)://host[:port][/path]`, with or without `/invocations`.

    Raises:
        UserError: the address is of another kind.
    """

    def __init__(self, address: str) -> None:
        try:
            parts = urlsplit(address)
        except ValueError:  # such as an open bracket
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise UserError(
                f"{printable(address)} is no address of a server", where="MODEL", fix="as http://127.0.0.1:5001"
            )
        if "@" in parts.netloc:
            raise UserError(
                f"{address} has credentials in it", where="MODEL", fix="leave them out: they would be shown"
            )
        self.address = address.rstrip("/").removesuffix("/invocations")
        self.is_local = is_loopback(parts.hostname or "")
        # a proxy of the environment would look for a server of this machine on its own
        proxies = [urllib.request.ProxyHandler({})] if self.is_local else []
        self._opener = urllib.request.build_opener(_RefuseRedirects, *proxies)

    def describe(self) -> Description:
        """Ask the server for the description of its model, and return it.

        Raises:
            UserError: it is no model server, or serves a model of another kind.
        """
        try:
            self._post("/ping", None, PING_S)
        except urllib.error.HTTPError as error:
            raise self.mistake(f"is no model server: /ping responds with {error.code} {_message(error)}") from None
        try:
            content = self._post("/invocations", _body(), PREDICTION_S)
        except urllib.error.HTTPError as error:
            raise self.mistake(f"responds with {error.code} {_message(error)}") from None
        try:
            (about,) = json.loads(content)["predictions"]
            task, classes = about["task"], tuple(map(str, about["model_classes"]))
            max_pixels = min(MAX_PIXELS, int(about.get("max_pixels", MAX_PIXELS)))
            if not isinstance(task, str) or not classes:
                raise ValueError("no task, or no classes")
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"the server does not say its model's classes: {_shorten(content)}",
                where=self.address,
                fix="serve a model that this version of the platform registered, or predict by models:/<name>@<alias>",
            ) from None
        if task not in TASKS:
            raise UserError(
                f"the server's model is for the task {printable(task)[:MAX_MESSAGE_CHARACTERS]}, which is none of "
                f"{', '.join(TASKS)}",
                where=self.address,
                fix="if a package of yours defines the task, add `--imports <package>`",
            )
        return Description(task, classes, max_pixels)

    def predict(self, image: bytes) -> PredictionDict:
        """Return the server's unchecked prediction for an encoded image; `validate_prediction` checks it.

        Raises:
            ImageRefused: the server cannot decode this image.
            UserError: there is no response, or not that of a model server.
        """
        try:
            content = self._post("/invocations", _body(image), PREDICTION_S)
        except urllib.error.HTTPError as error:
            message = _message(error)
            if error.code == 400 and message.startswith("image 0: "):
                raise ImageRefused(message.removeprefix("image 0: ")) from None
            raise self.mistake(f"responds with {error.code} {message}") from None
        try:
            (prediction,) = json.loads(content)["predictions"]
            return {**prediction}
        except (ValueError, TypeError, KeyError):
            raise self.mistake(f"sends no prediction: {_shorten(content)}") from None

    def _post(self, path: str, body: bytes | None, seconds: float) -> bytes:
        request = urllib.request.Request(  # noqa: S310  # http or https: see __init__
            self.address + path, body, {"Content-Type": "application/json"}
        )
        try:
            with self._opener.open(request, timeout=seconds) as response:
                content: bytes = response.read(LARGEST + 1)
        except urllib.error.HTTPError:
            raise
        except TimeoutError:
            raise self.mistake(f"kept silent for {seconds:g} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # refused, no such host, not HTTP, a bad port
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise self.mistake(f"kept silent for {seconds:g} s") from None
            raise self.mistake(
                f"cannot be asked: {printable(str(reason))[:MAX_MESSAGE_CHARACTERS] or type(reason).__name__}"
            ) from None
        if len(content) > LARGEST:
            raise self.mistake(f"sends more than {LARGEST} bytes")
        return content

    def mistake(self, what: str) -> UserError:
        """Return an error about this server, whose address the user should correct.

        Args:
            what: what the server does, such as "sends no prediction".
        """
        return UserError(
            f"the server {what}",
            where=self.address,
            fix="name the address that `mlflow models serve` listens on, and look at what it prints",
        )


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is that of this machine alone."""
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # another name
        return False


def validate_prediction(received: PredictionDict, size: tuple[int, int], model: Description) -> PredictionDict:
    """Return a server's prediction as the task gives it in the model's own process, after checking it.

    Args:
        received: the server's prediction.
        size: height and width of the image, pixels.
        model: the server's description of its model.

    Raises:
        ValueError, TypeError, KeyError: that model cannot predict this for an image of that size.
    """
    kind = task_kind(model.task)
    prediction = kind.parse_prediction(received, size)
    if unknown := set(prediction[kind.class_column]) - set(model.classes):
        raise ValueError(
            f"a class that its model does not have: {printable(str(min(unknown)))[:MAX_MESSAGE_CHARACTERS]}"
        )
    return prediction


def _body(*images: bytes) -> bytes:
    """Return the body of a request; without any image it asks for the description of the model."""
    return json.dumps({"dataframe_split": {"data": [[base64.b64encode(image).decode()] for image in images]}}).encode()


def _message(error: urllib.error.HTTPError) -> str:
    """Return a server's reason for an error: MLflow's `message`, or the response's text."""
    content = error.read(2**16)
    try:
        return _shorten(json.loads(content)["message"].encode())
    except (ValueError, TypeError, KeyError, AttributeError):
        return _shorten(content) or str(error.reason)


def _shorten(content: bytes) -> str:
    text = printable(" ".join(content[: 4 * MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace").split()))
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[:MAX_MESSAGE_CHARACTERS] + " ..."
