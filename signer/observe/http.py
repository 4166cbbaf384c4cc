"""The second port, plain HTTP: /metrics, /livez and /readyz for programs, / for people."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from signer.errors import OperatorError

Reasons = Callable[[], Sequence[str]]

_HTML_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    # The page needs nothing but itself, and no other page may frame or read it.
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may take to send its request

    def log_message(self, *_: object) -> None:
        """Probes come every second; they are no news."""


class _ThreadingServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True

    def server_bind(self) -> None:
        """Binds without asking DNS for the host's name, as WSGIServer would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class HttpPort:
    """Serves in a thread of its own until closed."""

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        reasons: Reasons,
        page: Callable[[], str],
    ) -> None:
        """Binds; raises OperatorError where the port is taken. ``page`` gives HTML."""
        self._metrics = make_wsgi_app(registry)
        self._reasons = reasons
        self._page = page
        host, port = address
        server = _ThreadingServer6 if host.startswith("[") else _ThreadingServer
        try:
            self._server = make_server(host.strip("[]"), port, self._answer, server, _QuietHandler)
        except OSError as error:
            raise OperatorError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; stop the other "
                "program or change `metrics` in the configuration"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        # Wakes the thread, which by itself looks only twice a second whether it is to end.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/livez":
                return _text(start_response, "200 OK", ["alive"])
            case "/readyz":
                reasons = self._reasons()
                if reasons:
                    return _text(start_response, "503 Service Unavailable", reasons)
                return _text(start_response, "200 OK", ["ready"])
            case "/":
                start_response("200 OK", list(_HTML_HEADERS))  # which the server adds to
                return [self._page().encode()]
            case _:
                return _text(start_response, "404 Not Found", ["/ /metrics /livez /readyz"])


def _text(start_response: Any, status: str, lines: Sequence[str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode() for line in lines]
