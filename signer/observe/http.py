"""The metrics port, plain HTTP: /metrics, /livez, /readyz, and the status page at /.

Clients need no identity here. So whatever they open and do not use, or ask for again and again,
neither keeps probes out nor takes the interpreter from the calls.
"""

import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Generic, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

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

T = TypeVar("T")

MAX_REQUESTS = 16
"""Connections at once. One more takes the place of one that has sent no request yet, or that
has not read its answer for ``ANSWER_SECONDS``; without one, it is closed."""
SILENT_SECONDS = 3.0
"""How long a client may take to send its request."""
ANSWER_SECONDS = 1.0
"""How long a client may take to read its answer where others wait for its place."""
REQUEST_SECONDS = 15.0
"""How long a request may take in total, however slowly its client sends or reads."""
COMPUTED_PART = 0.1
"""The part of the time for which metrics, or the page, are computed at most."""
_FORMATS = ("application/openmetrics-text;version=1.0.0", "text/plain")


@dataclass(slots=True)
class _Connection:
    """When it was opened (monotonic seconds), and when its request was there; None before."""

    opened: float
    asked: float | None = None


class Paced(Generic[T]):
    """A value that is expensive: computed for all who ask meanwhile, and with pauses.

    A caller gets a value that was begun after it had asked.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._turn = threading.Lock()  # held by the one that computes
        self._begun = self._number = 0  # computations begun, and the one that made the value
        self._value: T | None = None
        self._not_before = 0.0

    def get(self) -> T:
        """Returns the value; raises what its computation raises."""
        needed = self._begun + 1
        with self._turn:
            if self._number < needed:
                time.sleep(max(0.0, self._not_before - time.monotonic()))
                self._begun += 1
                began = time.monotonic()
                try:
                    self._value = self._compute()
                finally:
                    ended = time.monotonic()
                    self._not_before = ended + (ended - began) * (1 / COMPUTED_PART - 1)
                self._number = self._begun
            return self._value  # type: ignore[return-value] # computed at least once


class _Metrics(Paced[bytes]):
    """The registry in one format; ``kind`` is its content type. Without compression."""

    def __init__(self, registry: CollectorRegistry, accepted: str) -> None:
        encode, self.kind = choose_encoder(accepted)
        super().__init__(partial(encode, registry))


_NO_ROOM_SECONDS = 0.1


class _Handler(WSGIRequestHandler):
    def parse_request(self) -> bool:
        """Reads the request, and counts the connection as one that is answered."""
        read = super().parse_request()
        if isinstance(self.server, _Server):
            self.server.asked(self.request)
        return read

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
        self._open: dict[socket.socket, _Connection] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Binds without the DNS query for the host's name that WSGIServer makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def get_request(self) -> Any:
        """Accepts a connection; waits a moment when descriptors have run out."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_NO_ROOM_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        now = time.monotonic()
        with self._lock:
            if len(self._open) >= MAX_REQUESTS and (idle := self._idlest(now)) is not None:
                del self._open[idle]
                _hang_up(idle)
            if free := len(self._open) < MAX_REQUESTS:
                self._open[request] = _Connection(now)
        if free:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _idlest(self, now: float) -> socket.socket | None:
        """Returns the connection that is silent for the longest time, else one not read."""
        silent = (one for one, its in self._open.items() if its.asked is None)
        unread = (
            one
            for one, its in self._open.items()
            if its.asked is not None and now - its.asked > ANSWER_SECONDS
        )
        return next(silent, None) or next(unread, None)  # they are in the order of their opening

    def asked(self, request: socket.socket) -> None:
        """Notes that the request of a connection is there."""
        with self._lock:
            if (connection := self._open.get(request)) is not None:
                connection.asked = time.monotonic()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Closes connections that take too long; called twice a second."""
        now = time.monotonic()
        with self._lock:
            for request, its in self._open.items():
                silent = its.asked is None and now - its.opened > SILENT_SECONDS
                if silent or now - its.opened > REQUEST_SECONDS:
                    _hang_up(request)

    def handle_error(self, *_: object) -> None:
        """Ignores clients that send no valid request or close the connection."""


def _hang_up(request: socket.socket) -> None:
    """Ends a connection; under the server's lock, so that its descriptor is not another's."""
    with suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _named(answer: Any, environ: dict[str, Any], start_response: Any) -> Any:
    """Answers as ``answer`` does, without the name and version of Python's server."""

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        return start_response(status, [*headers, ("Server", "signer")], *error)

    return answer(environ, start)


class HttpThread:
    """Serves HTTP in a separate thread until closed; a subclass says what is answered."""

    def __init__(self, address: tuple[str, int], answer: Any, what: str, setting: str) -> None:
        """Binds; raises OperatorError if the port is in use.

        ``answer`` is a WSGI application, ``setting`` where the configuration has the address.
        """
        host, port = address
        server = _Server6 if host.startswith("[") else _Server
        try:
            named = partial(_named, answer)
            self._server = make_server(host.strip("[]"), port, named, server, _Handler)
        except OSError as error:
            raise OperatorError(
                f"cannot serve {what} on {host}:{port}: {error.strerror}; stop the other "
                f"program or change `{setting}` in the configuration"
            ) from error
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, name=what, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        # Wakes the thread, which otherwise checks only twice a second whether to end.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class HttpPort(HttpThread):
    """The metrics port."""

    def __init__(
        self,
        address: tuple[str, int],
        registry: CollectorRegistry,
        readings: Callable[[], Readings],
        *,
        reasons: Callable[[], Sequence[str]],
        away: Callable[[], Sequence[str]],
        page: Callable[[], str],
        stuck: Callable[[], str],
        events: Events,
    ) -> None:
        """Binds; raises OperatorError if the port is in use.

        ``readings`` returns the gauges that are added to the registry, ``reasons`` why the
        daemon does not serve, ``away`` what it serves without, ``page`` HTML, and ``stuck`` why
        the process is not alive, or "".
        """
        registry.register(LiveGauges(readings))
        self._metrics = [_Metrics(registry, accepted) for accepted in _FORMATS]
        self._reasons, self._away = reasons, away
        self._page = Paced(page)
        self._stuck = stuck
        self._events = events
        super().__init__(address, self._answer, "metrics", "metrics")

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            if environ.get("REQUEST_METHOD") == "HEAD":
                return self._headers_of(environ, start_response)
            return self._page_at(environ, start_response)
        except Exception as error:  # noqa: BLE001 - its text must not reach the client
            self._events.emit(Bug("the metrics port", error, {}))
            return plain_text(start_response, "500 Internal Server Error", ["see the log"])

    def _headers_of(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answers as to GET, but without the body (RFC 9110, section 9.3.2)."""
        begun: list[Any] = []
        body = self._page_at(
            environ | {"REQUEST_METHOD": "GET"}, lambda *answer: begun.extend(answer)
        )
        status, headers = begun
        start_response(status, [*headers, ("Content-Length", str(sum(map(len, body))))])
        return []

    def _page_at(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match environ.get("PATH_INFO"):
            case "/metrics":
                if environ.get("REQUEST_METHOD") != "GET":
                    return plain_text(start_response, "405 Method Not Allowed", ["use GET"])
                openmetrics = "application/openmetrics-text" in environ.get("HTTP_ACCEPT", "")
                metrics = self._metrics[0 if openmetrics else 1]
                start_response("200 OK", [("Content-Type", metrics.kind)])
                return [metrics.get()]
            case "/livez":
                stuck = self._stuck()
                status = "503 Service Unavailable" if stuck else "200 OK"
                return plain_text(start_response, status, [stuck or "alive"])
            case "/readyz":
                reasons = self._reasons()
                status = "503 Service Unavailable" if reasons else "200 OK"
                return plain_text(start_response, status, reasons or ["ready", *self._away()])
            case "/":
                page = self._page.get().encode()
                start_response("200 OK", list(_HTML_HEADERS))  # which the server adds to
                return [page]
            case _:
                return plain_text(start_response, "404 Not Found", ["/ /metrics /livez /readyz"])


def plain_text(start_response: Any, status: str, lines: Sequence[str]) -> Iterable[bytes]:
    """Answers with lines of text."""
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{line}\n".encode() for line in lines]
