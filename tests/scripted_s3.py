"""An HTTP server on a local port that answers what a test wrote down: for failures no real S3 server makes on demand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """A request as it arrived; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """An answer. `announce` is its Content-Length where that is a lie; `silent` seconds pass first; `hang_up` sends nothing."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    announce: int | None = None
    hang_up: bool = False
    silent: threading.Event | None = None


@dataclass
class ScriptedServer:
    """`script` answers each request; `requests` is what came, in order."""

    script: Callable[[Request], Reply]
    port: int = 0
    requests: list[Request] = field(default_factory=list)

    def sent(self, method: str) -> int:
        """How many requests of that method arrived."""
        return sum(request.method == method for request in self.requests)


@contextmanager
def scripted_server(script: Callable[[Request], Reply]) -> Iterator[ScriptedServer]:
    """A running server; every connection serves one request, so that nothing depends on what came before."""
    server = ScriptedServer(script)
    listener = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    server.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def _handler(server: ScriptedServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            server.requests.append(request)
            self.close_connection = True
            reply = server.script(request)
            if reply.silent is not None:
                reply.silent.wait(10)
            if not reply.hang_up:
                with suppress(ConnectionError):  # the client may have given up
                    self.answer(reply)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

        def answer(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) if reply.announce is None else reply.announce))
            self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet: `requests` tells it."""

    return Handler
