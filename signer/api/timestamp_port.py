"""The time-stamp port, plain HTTP: RFC 3161 section 3.4.

A caller that reaches it gets time-stamps of one key, as one principal of the policy: its rules,
quotas and opening hours hold for all of them together. Nothing else can be asked for here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from google.rpc import error_details_pb2, status_pb2

from signer.api.guard import Caller, Guard
from signer.api.signing_service import SigningService
from signer.api.streams import METHOD
from signer.config.models import TimestampsConfig
from signer.errors import Reason
from signer.event_loop import EventLoop
from signer.events import Bug, Events
from signer.formats.timestamp import MAX_BYTES
from signer.formats.timestamp_asn1 import refused
from signer.observe.http import HttpThread, plain_text
from signer.v1 import signing_pb2

QUERY, REPLY = "application/timestamp-query", "application/timestamp-reply"
SECONDS = 10.0
"""How long a time-stamp may take: less than the port waits for a whole request."""

_BY_MEMBER: Mapping[str, str] = {
    "messageImprint.hashAlgorithm": "badAlg",
    "reqPolicy": "unacceptedPolicy",
    "extensions": "unacceptedExtension",
}


class TimestampPort(HttpThread):
    """Answers time-stamp requests in a thread for each, until closed."""

    def __init__(
        self,
        config: TimestampsConfig,
        signing: SigningService,
        guard: Guard,
        loop: EventLoop,
        events: Events,
    ) -> None:
        """Binds; raises OperatorError if the port is in use."""
        self._principal, self._key = config.principal, config.key
        self._signing, self._guard = signing, guard
        self._loop, self._events = loop, events
        super().__init__(config.listen, self._answer, "time-stamps", "timestamps.listen")

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("REQUEST_METHOD") != "POST":
            return plain_text(start_response, "405 Method Not Allowed", ["use POST"])
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != QUERY:
            return plain_text(start_response, "415 Unsupported Media Type", [f"send {QUERY}"])
        length = environ.get("CONTENT_LENGTH") or ""
        if not length.isdecimal():
            return plain_text(start_response, "411 Length Required", ["state Content-Length"])
        if int(length) > MAX_BYTES:
            text = f"a request has at most {MAX_BYTES} bytes"
            return plain_text(start_response, "413 Content Too Large", [text])
        try:
            reply = self._loop.run(self._stamp(environ["wsgi.input"].read(int(length))))
        except Exception as error:  # noqa: BLE001 - its text must not reach the client
            self._events.emit(Bug("the time-stamp port", error, {}))
            reply = refused("systemFailure", ["internal error"])
        headers = [("Content-Type", REPLY), ("Content-Length", str(len(reply)))]
        start_response("200 OK", headers)
        return [reply]

    async def _stamp(self, query: bytes) -> bytes:
        """Returns the TimeStampResp to a request; it is one call, booked as any other."""
        principal = self._principal
        request = signing_pb2.SignBatchRequest(
            key=self._key, format=signing_pb2.FORMAT_TIMESTAMP, payloads=[query]
        )

        def identify(now: float, call_id: str, notes: dict[str, object]) -> Caller:
            notes["principal"] = principal
            roles = self._guard.allowed(METHOD, principal)
            return Caller(principal, roles, now + SECONDS, call_id, notes)

        async def respond(caller: Caller) -> signing_pb2.SignBatchResponse:
            place = self._guard.places.take(principal, len(query))
            try:
                return await self._signing.SignBatch(request, caller)
            finally:
                place.give_back()

        response, status = await self._guard.booked(METHOD, (), identify, respond)
        if response is not None and not response.failures:
            return response.signatures[0]
        return _refusal(response.failures[0] if response is not None else status)


def _refusal(status: status_pb2.Status | None) -> bytes:
    """Returns the answer without a token. Only what is wrong with a request is explained.

    Callers are unknown here: what the policy says is for the log.
    """
    info = error_details_pb2.ErrorInfo()
    if status is not None and status.details:
        status.details[0].Unpack(info)
    if status is not None and info.reason == Reason.PAYLOAD_INVALID:
        failure = _BY_MEMBER.get(info.metadata.get("member", ""), "badDataFormat")
        return refused(failure, [status.message])
    if info.reason == Reason.CLOCK_DOUBTFUL:
        return refused("timeNotAvailable", ["the clock is in doubt: try again later"])
    return refused("systemFailure", ["no time-stamps are made for this port now"])
