"""SignStream: many requests over one stream, each a call of its own.

Requests are answered when they are done, in any order. Nothing is refused because the caller
has its share of places: the stream is then not read further, and HTTP/2 flow control makes the
caller wait. For the event loop only.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, cast

import grpc

from signer.api.guard import DEFAULT_SECONDS, Caller, Context, Guard, parsed
from signer.api.identity import identity_of, principal_of
from signer.api.places import Place
from signer.api.wire import read_stream_request
from signer.clock import Clock
from signer.config.models import LimitsConfig
from signer.errors import CallError, Reason
from signer.signing.request import Served
from signer.v1 import signing_pb2

METHOD = "/signer.v1.SigningService/SignStream"
REQUEST = "/signer.v1.SigningService/SignBatch"
"""The method under which each request of a stream is counted and logged."""
STREAMS_TO_CALLS = 2
"""Streams of all principals for each of `limits.calls`."""
_RETRY_SECONDS = 1.0
Sign = Callable[[signing_pb2.SignBatchRequest, Caller], Awaitable[signing_pb2.SignBatchResponse]]


class _Stream:
    """One open stream: the requests that it has read and not answered, and why it ends."""

    def __init__(self, context: Context, principal: str, now: float) -> None:
        self.context, self.principal = context, principal
        self.auth = context.auth_context()
        self.certificate_end = identity_of(self.auth).end
        self.metadata = tuple(context.invocation_metadata() or ())
        self.policy: object = None  # under which its principal was looked at
        self.task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.requests: set[asyncio.Task[None]] = set()
        self.answers: deque[tuple[bytes, Place]] = deque()
        self.writing = self.reading = False
        self.used = now  # when a request last came or was answered, monotonic seconds
        self.ended: CallError | None = None

    def end(self, error: CallError) -> None:
        """Ends the stream with an error once the requests that it has read are answered."""
        if self.ended is None:
            self.ended = error
            if self.reading:
                self.task.cancel()


class _StreamRequest(NamedTuple):
    """One request of a stream."""

    stream: _Stream
    asked: signing_pb2.SignStreamRequest
    place: Place


class Streams:
    """All open streams."""

    def __init__(self, guard: Guard, served: Served, limits: LimitsConfig, clock: Clock) -> None:
        self._guard, self._served, self._clock = guard, served, clock
        self._limits = limits
        self._open: set[_Stream] = set()
        self._held: Counter[str] = Counter()
        self._draining: CallError | None = None

    @property
    def open(self) -> int:
        """Returns the number of open streams."""
        return len(self._open)

    def drain(self) -> None:
        """Ends all streams, and new ones at once."""
        self._draining = CallError(
            Reason.STREAM_ENDED,
            "the appliance is stopping: open another stream and send what was not answered",
            retry_after=_RETRY_SECONDS,
        )
        for stream in self._open:
            stream.end(self._draining)

    def expire(self) -> None:
        """Ends streams that are idle, and those whose client's certificate has ended."""
        now, idle = self._clock.now(), self._limits.stream_idle_seconds
        monotonic = self._clock.monotonic()
        for stream in self._open:
            if now >= stream.certificate_end:
                text = "the client certificate has expired: connect with a new one"
                stream.end(CallError(Reason.PEER_UNKNOWN, text))
            elif not stream.requests and monotonic - stream.used >= idle:
                text = f"the stream was idle for {idle:g} s: open another when it is needed"
                stream.end(CallError(Reason.STREAM_ENDED, text, retry_after=_RETRY_SECONDS))

    async def serve(self, context: Context, caller: Caller, sign: Sign) -> None:
        """Answers the requests of one stream until it ends; raises CallError."""
        principal = caller.principal
        self._check_number(principal)
        stream = _Stream(context, principal, self._clock.monotonic())
        stream.ended = self._draining
        self._held[principal] += 1
        self._open.add(stream)
        try:
            caller.notes["requests"] = await self._read(stream, sign)
            while stream.requests:
                await asyncio.wait(stream.requests)
        except BaseException:
            await _drop(stream)
            raise
        finally:
            self._open.discard(stream)
            self._held[principal] -= 1
            for _, place in stream.answers:  # whose caller has gone
                place.give_back()
        if stream.ended is not None:
            raise stream.ended

    def _check_number(self, principal: str) -> None:
        """Raises CallError if a principal may not open one more stream."""
        own = self._held[principal] >= self._limits.streams_per_client
        if own or len(self._open) >= STREAMS_TO_CALLS * self._limits.calls:
            most = self._limits.streams_per_client if own else STREAMS_TO_CALLS * self._limits.calls
            raise CallError(
                Reason.OVERLOADED,
                f"too many {'of your ' if own else ''}streams ({most} at once): use open ones",
                {"limit": "streams_per_client" if own else "calls"},
                retry_after=_RETRY_SECONDS,
            )

    async def _read(self, stream: _Stream, sign: Sign) -> int:
        """Reads requests and begins to answer them; returns their number at the end."""
        count, places = 0, self._guard.places
        while stream.ended is None:
            stream.reading = True
            try:
                if not places.free(stream.principal):
                    await places.wait(stream.principal)
                message = await stream.context.read()
            except asyncio.CancelledError:
                if stream.ended is None:  # the caller has gone
                    raise
                stream.task.uncancel()
                break
            finally:
                stream.reading = False
            if message is grpc.aio.EOF:
                break
            count += 1
            stream.used = self._clock.monotonic()
            place = places.add(stream.principal, len(message))
            answer = self._answer(stream, message, place, sign)
            request = asyncio.get_running_loop().create_task(answer)
            stream.requests.add(request)
            request.add_done_callback(stream.requests.discard)
        return count

    async def _answer(self, stream: _Stream, message: bytes, place: Place, sign: Sign) -> None:
        """Signs what one request asks for, and writes the answer."""
        respond: Callable[[Caller], Awaitable[signing_pb2.SignBatchResponse]]
        try:
            asked = parsed(read_stream_request, message)
            respond = partial(sign, asked.batch)
        except CallError as error:
            asked, respond = signing_pb2.SignStreamRequest(), partial(_refuse, error)
        answered = signing_pb2.SignStreamResponse(tag=asked.tag)
        try:
            identify = partial(self._identify, _StreamRequest(stream, asked, place))
            batch, status = await self._guard.booked(REQUEST, stream.metadata, identify, respond)
        except BaseException:
            place.give_back()
            raise
        if status is not None:
            answered.error.CopyFrom(status)
        elif batch is not None:
            answered.batch.CopyFrom(batch)
        data = answered.SerializeToString()
        place.answered(len(data))
        stream.answers.append((data, place))
        if not stream.writing:
            await self._write(stream)

    async def _write(self, stream: _Stream) -> None:
        """Writes the answers that are ready, and those that become ready meanwhile."""
        stream.writing = True
        try:
            while stream.answers:
                answer, place = stream.answers[0]
                await stream.context.write(answer)
                stream.answers.popleft()
                stream.used = self._clock.monotonic()
                place.give_back()
        except grpc.aio.BaseError:
            return  # the caller has gone: its stream ends as well
        finally:
            stream.writing = False

    def _identify(
        self, request: "_StreamRequest", now: float, call_id: str, notes: dict[str, object]
    ) -> Caller:
        """Returns the caller of one request, under the policy in force now. Raises CallError."""
        stream, asked, place = request
        notes["principal"] = stream.principal
        policy = self._served.snapshot.policy
        if policy is not stream.policy:
            principal_of(stream.auth, policy.denied_certificates)
            stream.policy = policy
        roles = self._guard.allowed(METHOD, stream.principal)
        seconds = DEFAULT_SECONDS
        if asked.HasField("timeout"):
            seconds = asked.timeout.seconds + asked.timeout.nanos / 1e9
        if seconds > 3600 * 24:
            seconds = DEFAULT_SECONDS
        return Caller(stream.principal, roles, now + seconds, call_id, notes, place)


async def _refuse(error: CallError, _: Caller) -> signing_pb2.SignBatchResponse:
    raise error


async def _drop(stream: _Stream) -> None:
    """Drops the requests of a caller that has gone; what is unsigned is not signed."""
    for request in stream.requests:
        request.cancel()
    while stream.requests:
        await asyncio.wait(stream.requests)
