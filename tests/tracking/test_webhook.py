"""What is posted to a webhook: signed so that anybody's library can check it, and to nowhere else."""

import base64
import hashlib
import hmac
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.receiver import Receiver, receiving
from hypothesis import given
from hypothesis import strategies as st

from scalablevit.tracking import webhook
from scalablevit.tracking.connection import Away, Refused
from scalablevit.tracking.webhook import post, sign

KEY = bytes(range(32))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def is_genuine(key: bytes, headers: dict[str, str], body: bytes, now: float) -> bool:
    """As a receiver checks it, by the specification's text and not by our code."""
    version, _, given_digest = headers["webhook-signature"].partition(",")
    signed = headers["webhook-id"].encode() + b"." + headers["webhook-timestamp"].encode() + b"." + body
    right = hmac.new(key, signed, hashlib.sha256).digest()
    fresh = abs(now - int(headers["webhook-timestamp"])) <= 300
    return fresh and version == "v1" and hmac.compare_digest(base64.b64decode(given_digest, validate=True), right)


def test_the_signature_is_that_of_the_specifications_example() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(st.binary(min_size=16, max_size=64), st.text("0123456789abcdef", min_size=1), st.integers(0, 2**40), st.binary(),
       st.integers(min_value=0))  # fmt: skip
def test_what_is_signed_is_genuine_and_nothing_else_is(key: bytes, uid: str, now: int, body: bytes, at: int) -> None:
    headers = {"webhook-id": uid, "webhook-timestamp": str(now), "webhook-signature": sign(key, uid, now, body)}
    assert is_genuine(key, headers, body, now)
    assert not is_genuine(key, headers, body + b" ", now)
    assert not is_genuine(bytes(byte ^ 1 for byte in key), headers, body, now)
    assert not is_genuine(key, {**headers, "webhook-id": uid + "0"}, body, now)
    assert not is_genuine(key, {**headers, "webhook-timestamp": str(now + 1 + at % 300)}, body, now), "replayed"
    assert not is_genuine(key, headers, body, now + 301)


def test_a_message_arrives_signed(receiver: Receiver) -> None:
    post(receiver.address, KEY, "a1", b'{"event": "finished"}')
    ((path, headers, body),) = receiver.posted
    assert (path, body, headers["webhook-id"]) == ("/hook?of=us", b'{"event": "finished"}', "a1")
    assert headers["content-type"] == "application/json" and headers["host"] == f"127.0.0.1:{receiver.port}"
    assert is_genuine(KEY, headers, body, time.time())


def test_without_a_key_there_is_no_signature(receiver: Receiver) -> None:
    post(receiver.address, b"", "a1", b"{}")
    assert "webhook-signature" not in receiver.posted[0][1]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_receiver_will_never_take_is_refused(receiver: Receiver, status: int) -> None:
    receiver.statuses.append(status)
    with pytest.raises(Refused, match=f"it responded {status}"):
        post(receiver.address, KEY, "a1", b"{}")


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
def test_what_may_pass_later_is_no_refusal(receiver: Receiver, status: int) -> None:
    receiver.statuses.append(status)
    with pytest.raises(Away, match=f"it responded {status}"):
        post(receiver.address, KEY, "a1", b"{}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    with receiving() as other:
        receiver.statuses.append(status)
        receiver.headers["Location"] = other.address
        with pytest.raises(Away, match=f"it responded {status}, and redirects are not followed"):
            post(receiver.address, KEY, "a1", b"{}")
        assert len(receiver.posted) == 1 and not other.posted


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Every name is at the next of these addresses; returns the names that were looked up."""
    asked: list[str] = []

    def look_up(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        address = answers[min(len(asked), len(answers)) - 1]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if ":" in address else (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that anything tries to connect to; none is reached."""
    called: list[str] = []

    class Unconnected(socket.socket):
        def connect(self, place: Any) -> None:
            called.append(str(place[0]))
            raise ConnectionRefusedError

    monkeypatch.setattr(socket, "socket", Unconnected)
    return called


LINK_LOCAL = ["169.254.169.254", "169.254.0.1", "fe80::1", "fe80::a9fe:a9fe%1", "::ffff:169.254.169.254"]
METADATA = [
    "64:ff9b::a9fe:a9fe",
    "::ffff:100.100.100.200",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
]
"""By a gateway from IPv6; then of Alibaba, AWS, Google, Azure and Oracle, outside the link-local range."""


@pytest.mark.parametrize("address", LINK_LOCAL + METADATA)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_link_local_or_metadata_address_is_called_whatever_name_leads_to_it(
    address: str, scheme: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, address)
    with pytest.raises(Away, match="link-local"):
        post(f"{scheme}://hooks.example/x", KEY, "a1", b"{}", allow_http=True)
    assert calls == []


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "2852039166"])
def test_no_link_local_address_is_called_by_number(host: str, calls: list[str]) -> None:
    with pytest.raises(Away, match="link-local"):
        post(f"https://{host}/latest/meta-data", KEY, "a1", b"{}")
    assert calls == []


def test_the_address_that_was_checked_is_the_one_that_is_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that answers anew at every look-up is asked once."""
    asked = resolving(monkeypatch, "127.0.0.1", "169.254.169.254")
    post(f"http://hooks.example:{receiver.port}/", KEY, "a1", b"{}")
    assert len(receiver.posted) == 1 and asked == ["hooks.example"]


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.9", "2001:db8::1", "fd12:3456::1", "64:ff9b::c000:201"])
def test_others_are_called(address: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Public ones, and those of a company's own network."""
    resolving(monkeypatch, address)
    with pytest.raises(Away, match="ConnectionRefusedError"):
        post("https://hooks.example/x", KEY, "a1", b"{}")
    assert calls == [address]


def test_an_address_that_must_not_be_called_spoils_no_good_one_before_it(
    receiver: Receiver, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with several addresses: they are tried in order, each checked before."""
    places = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in ("192.0.2.1", "169.254.169.254")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(Away, match="link-local"):
        post("https://hooks.example/x", KEY, "a1", b"{}")
    assert calls == ["192.0.2.1"]


def test_a_receiver_that_never_ends_its_response_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte at a time, each within the time for a part."""
    monkeypatch.setattr(webhook, "LONGEST_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            opened, _ = server.accept()
            with opened, suppress(OSError):
                opened.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while True:
                    opened.sendall(b"x")
                    time.sleep(0.01)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        begin = time.monotonic()
        with suppress(Away):  # what had come may be a response
            post(f"http://127.0.0.1:{server.getsockname()[1]}/", KEY, "a1", b"{}")
        assert time.monotonic() - begin < 5
        thread.join(10)


def test_plain_http_leaves_this_machine_only_if_told(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, "192.0.2.1")
    with pytest.raises(Away, match="http:// is for this machine alone"):
        post("http://localhost/x", KEY, "a1", b"{}")
    assert calls == []
    with pytest.raises(Away, match="ConnectionRefusedError"):
        post("http://localhost/x", KEY, "a1", b"{}", allow_http=True)
    assert calls == ["192.0.2.1"]


def test_no_error_names_the_address(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    for address, why in (
        (f"http://127.0.0.1:{closed}/canary", "ConnectionRefusedError"),
        (f"https://127.0.0.1:{receiver.port}/canary", "SSLError"),
        ("https://canary.invalid/canary", "gaierror"),
        ("https://canary..example/canary", "UnicodeError"),
    ):
        with pytest.raises(Away, match=why) as raised:
            post(address, KEY, "a1", b"{}")
        assert "canary" not in repr(raised.value) and "127.0.0.1" not in repr(raised.value)
        assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_a_certificate_is_checked_for_the_host_of_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    resolving(monkeypatch, "127.0.0.1")
    with receiving(tls=context) as receiver:
        address = f"https://localhost:{receiver.port}/"
        with pytest.raises(Away, match="SSLCertVerificationError"):
            post(address, KEY, "a1", b"{}")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(Away, match="SSLCertVerificationError"):
            post(f"https://hooks.example:{receiver.port}/", KEY, "a1", b"{}")
        assert not receiver.posted
        post(address, KEY, "a1", b"{}")
        assert is_genuine(KEY, receiver.posted[0][1], b"{}", time.time())
