"""An HTTP server on loopback that takes webhooks, and answers as a test says."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Receiver:
    """What was posted, and what is answered."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    """Of the next requests; 204 when there are none left."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of every response."""
    posted: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers in lower case, and body of each request."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?of=us"


@contextmanager
def receiving(port: int = 0, tls: Any = None) -> Iterator[Receiver]:
    """Serve while the block lasts, at a port (0: a free one), with an SSL context if one is given."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.posted.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 204)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
