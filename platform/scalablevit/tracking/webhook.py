"""Posts a signed message to an address that the operator chose: no redirect, no proxy, no metadata of clouds."""

import base64
import hmac
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from urllib.parse import urlsplit

from scalablevit.tracking.connection import NO_SUCH_PAGE, TRY_AGAIN, Away, Refused

TIMEOUT_S = 10.0
"""Longest wait in seconds for a connection, and for each part of the response."""
LONGEST_S = 30.0
"""Longest time in seconds of a request, whatever comes in however small parts."""
TRANSLATED = tuple(map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96")))
"""IPv6 addresses that end with an IPv4 address, to which a system or a gateway may lead."""
NEVER_CALLED = tuple(map(ipaddress.ip_network, (
    "169.254.0.0/16", "fe80::/10", "fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200", "168.63.129.16", "192.0.0.192",
)))  # fmt: skip
"""Link-local addresses, and where AWS, Google, Alibaba, Azure and Oracle have metadata and credentials elsewhere."""


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of the Standard Webhooks specification: HMAC-SHA256 in base64.

    Args:
        key: shared with the receiver.
        message_id: header `webhook-id`; the same at every attempt, so that the receiver knows a repetition.
        timestamp: header `webhook-timestamp`, seconds since the epoch; the receiver refuses an old one.
        body: of the request.
    """
    return "v1," + base64.b64encode(hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, "sha256")).decode()


def post(address: str, key: bytes, message_id: str, body: bytes, *, allow_http: bool = False) -> None:
    """Post a JSON message once.

    No error names the address, which may be all that is needed to post to a chat.

    Args:
        address: http(s) URL.
        key: as for `sign`; empty: the message is not signed.
        message_id: as for `sign`.
        body: of the request.
        allow_http: http:// may leave this machine.

    Raises:
        Away: it was not delivered; later it may be.
        Refused: the receiver will never take this message.
    """
    timestamp = int(time.time())
    headers = {"Content-Type": "application/json", "webhook-id": message_id, "webhook-timestamp": str(timestamp)}
    if key:
        headers["webhook-signature"] = sign(key, message_id, timestamp, body)
    try:
        status = _request(address, headers, body, allow_http)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Away(f"it cannot be reached: {type(error).__name__}") from None  # their texts may name the host
    if 400 <= status < 500 and status not in TRY_AGAIN | NO_SUCH_PAGE:
        raise Refused(f"it responded {status}")
    if not 200 <= status < 300:
        raise Away(f"it responded {status}" + ", and redirects are not followed" * (300 <= status < 400))


def _request(address: str, headers: dict[str, str], body: bytes, allow_http: bool) -> int:
    """Return the status of the response."""
    url = urlsplit(address)
    tls, host = url.scheme == "https", url.hostname or ""
    port = url.port or (443 if tls else 80)
    connection = (http.client.HTTPSConnection if tls else http.client.HTTPConnection)(host, port)
    with _connect(host, port, loopback_only=not tls and not allow_http) as opened, opened.dup() as same:
        limit = threading.Timer(LONGEST_S, same.shutdown, [socket.SHUT_RDWR])
        limit.daemon = True  # no process waits for it
        limit.start()
        try:
            # a connection that has a socket opens no other, by a second look-up that might lead elsewhere
            connection.sock = ssl.create_default_context().wrap_socket(opened, server_hostname=host) if tls else opened
            connection.request("POST", (url.path or "/") + f"?{url.query}" * bool(url.query), body, headers)
            return connection.getresponse().status
        finally:
            limit.cancel()
            connection.close()


def _connect(host: str, port: int, *, loopback_only: bool) -> socket.socket:
    """Return a connection to the first address of a host that takes one; each address is checked before it is called.

    Raises:
        Away: an address is one that must not be called.
        OSError: there is none, or none takes the connection.
    """
    failure = OSError("no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        _check_address(str(place[0]), loopback_only)
        opened = socket.socket(family, kind, protocol)
        opened.settimeout(TIMEOUT_S)
        try:
            opened.connect(place)
            return opened
        except OSError as error:
            opened.close()
            failure = error
    raise failure


def _check_address(text: str, loopback_only: bool) -> None:
    address = ipaddress.ip_address(text)
    if any(address in network for network in TRANSLATED):
        address = ipaddress.IPv4Address(int(address) % 2**32)
    if any(address in network for network in NEVER_CALLED):
        raise Away("its host is at a link-local or metadata address, where clouds keep credentials, and is not called")
    if loopback_only and not address.is_loopback:
        raise Away("http:// is for this machine alone: use https://, or allow http (allow_http)")
