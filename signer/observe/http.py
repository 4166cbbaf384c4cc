"""The metrics port, plain HTTP: /metrics, /livez, /readyz, and the status page at /."""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from signer.errors import OperatorError
from signer.events import Bug, Events
from signer.observe.gauges import LiveGauges, Readings

_HTML_HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    # The page loads nothing else, and no other page may frame or read it.
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)

MAX_REQUESTS = 16
"""Requests at once; further connections are closed. Clients need no identity here."""
REQUEST_SECONDS = 15.0
"""How long a request may take in total, however slowly its client sends or reads."""


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Writes nothing: there is a probe every second."""

    def get_stderr(self) -> Any:
        """Returns a sink for what wsgiref prints: stderr is for log lines."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Binds without the DNS query for the host's name that WSGIServer makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            full = len(self._open) >= MAX_REQUESTS
            if not full:
                self._open[request] = time.monotonic() + REQUEST_SECONDS
        if full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Closes connections that take too long; called twice a second."""
        now = time.monotonic()
        with self._lock:  # under it no file descriptor is closed and reused
            for request, until in self._open.items():
                if until < now:
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Ignores clients that send no valid request or close the connection."""


class _Server6(_Server):
    address_family = socket.AF_INET6


class HttpPort:
    """Serves in a separate thread until closed."""

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        readings: Callable[[], Readings],
        *,
        reasons: Callable[[], Sequence[str]],
        page: Callable[[], str],
        stuck: Callable[[], str],
        events: Events,
    ) -> None:
        """Binds; raises OperatorError if the port is in use.

        ``readings`` returns the gauges that are added to the registry, ``page`` HTML, and
        ``stuck`` why the process is not alive, or "".
        """
        registry.register(LiveGauges(readings))
        self._metrics = make_wsgi_app(registry)
        self._reasons = reasons
        self._page = page
        self._stuck = stuck
        self._events = events
        host, port = address
        server = _Server6 if host.startswith("[") else _Server
        try:
            self._server = make_server(host.strip("[]"), port, self._answer, server, _Handler)
        except OSError as error:
            raise OperatorError(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; stop the other "
                "program or change `metrics` in the configuration"
            ) from error
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        # Wakes the thread, which otherwise checks only twice a second whether to end.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            return self._page_at(environ, start_response)
        except Exception as error:  # noqa: BLE001 - its text must not reach the client
            self._events.emit(Bug("the metrics port", error, {}))
            return _text(start_response, "500 Internal Server Error", ["see the log"])

    def _page_at(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                answer: Iterable[bytes] = self._metrics(environ, start_response)
                return answer
            case "/livez":
                stuck = self._stuck()
                status = "503 Service Unavailable" if stuck else "200 OK"
                return _text(start_response, status, [stuck or "alive"])
            case "/readyz":
                reasons = self._reasons()
                status = "503 Service Unavailable" if reasons else "200 OK"
                return _text(start_response, status, reasons or ["ready"])
            case "/":
                page = self._page().encode()
                start_response("200 OK", list(_HTML_HEADERS))  # which the server adds to
                return [page]
            case _:
                return _text(start_response, "404 Not Found", ["/ /metrics /livez /readyz"])


def _text(start_response: Any, status: str, lines: Sequence[str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode() for line in lines]
