"""One call as grpc.aio shows it to a handler, without a network."""

import asyncio
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.unit.officers.people import certificate_of, pem

ISSUER, OPERATOR = "spiffe://signer.example/issuer", "spiffe://signer.example/operator"


@cache
def said_of(uri: str) -> Mapping[str, list[bytes]]:
    """What gRPC says of a connection with a good certificate for a principal."""
    certificate = pem(certificate_of(uri)).encode()
    said = {"ssl_tls_version": b"TLSv1.3", "peer_uri": uri.encode(), "x509_pem_cert": certificate}
    return {name: [value] for name, value in said.items()}


class Aborted(Exception):
    """How a handler ends that has aborted its call."""


class Context:
    """A call with these messages; ``silent``: it then waits for ever instead of ending them."""

    def __init__(
        self, uri: str = ISSUER, *messages: bytes, left: float | None = None, silent: bool = False
    ) -> None:
        self.uri, self.left, self.silent = uri, left, silent
        self.messages = list(messages)
        self.written: list[Any] = []
        self.status: Any = None
        self.waits = False  # for a message
        self.gate: asyncio.Event | None = None  # writing waits for it
        self._ended: list[Callable[[Any], None]] = []

    async def read(self) -> Any:
        if self.messages:
            return self.messages.pop(0)
        if not self.silent:
            return grpc.aio.EOF
        self.waits = True
        try:
            await asyncio.Event().wait()
        finally:
            self.waits = False

    async def write(self, message: Any) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.written.append(message)

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing: Any = ()) -> NoReturn:
        self.status = (code, details, trailing)
        raise Aborted

    def set_code(self, code: grpc.StatusCode) -> None:
        self.status = (code, "", ())

    def set_details(self, details: str) -> None:
        self.status = (self.status[0], details, ())

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return said_of(self.uri)

    def peer(self) -> str:
        return "ipv4:192.0.2.1:5000"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("traceparent", "00-1-2-01"),)

    def time_remaining(self) -> float | None:
        return self.left

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._ended.append(callback)

    async def serve(self, call: Any) -> Any:
        """Runs a handler to its end, as gRPC does."""
        try:
            return await call(None, self)
        finally:
            for callback in self._ended:
                callback(self)

    @property
    def reason(self) -> tuple[str, str]:
        """Code and reason of the refusal."""
        return self.status[0].name, self.info.reason

    @property
    def info(self) -> Any:
        """The one ErrorInfo of the refusal."""
        [(_, data)] = self.status[2]
        details = status_pb2.Status.FromString(data).details
        infos = [d for d in details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
        assert len(infos) == 1
        return error_details_pb2.ErrorInfo.FromString(infos[0].value)


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop run until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never held")
