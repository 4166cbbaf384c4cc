"""SignStream without a network: each request is a call of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import pytest

from signer.api.guard import Caller, Guard
from signer.api.places import Bound, Places
from signer.api.streams import METHOD, REQUEST, Streams
from signer.config.models import LimitsConfig
from signer.errors import CallError, Reason
from signer.events import CallDenied, CallEnded
from signer.key_index import KeyIndex
from signer.model import Role
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot
from signer.v1 import signing_pb2
from tests.stand_ins import Recorder, SetClock
from tests.unit.api.context import ISSUER, Aborted, Context, until
from tests.unit.officers.people import ENDS

Answered = signing_pb2.SignBatchResponse
IDLE = 600.0


def policy(*principals: str) -> Policy:
    return Policy(
        sha256="",
        roles={name: frozenset({Role.ISSUER}) for name in principals},
        denied_certificates=frozenset(),
        groups={},
        facilities={},
        facilities_of={},
        groups_of={},
    )


def message(tag: int, key: str = "k", seconds: int = 0) -> bytes:
    request = signing_pb2.SignStreamRequest(tag=tag)
    request.batch.key = key
    if seconds:
        request.timeout.FromSeconds(seconds)
    return request.SerializeToString()


class Stage:
    """Streams with a signer that answers with the key's name, once its gate is open."""

    def __init__(self, *, of_one: int = 8, streams: int = 2) -> None:
        self.recorder, self.clock = Recorder(), SetClock(1000.0)
        self.served = Served(Snapshot(policy(ISSUER), KeyIndex(())))
        self.places = Places(
            Bound(100, of_one), Bound(10_000, 10_000), Bound(100, of_one), Bound(8, 8)
        )
        self.guard = Guard(
            served=self.served,
            roles={"signer.v1.SigningService": frozenset({Role.ISSUER})},
            places=self.places,
            events=self.recorder.events,
            clock=self.clock,
        )
        limits = LimitsConfig.model_validate(
            {"streams_per_client": streams, "stream_idle_seconds": IDLE}
        )
        self.streams = Streams(self.guard, self.served, limits, self.clock)
        self.gates: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.dropped: list[str] = []
        self.deadlines: list[float] = []

    async def sign(self, request: signing_pb2.SignBatchRequest, caller: Caller) -> Answered:
        self.begun.append(request.key)
        self.deadlines.append(caller.deadline)
        if request.key == "bad":
            raise CallError(Reason.QUOTA_EXCEEDED, "used up", retry_after=1.0)
        if gate := self.gates.get(request.key):
            try:
                await gate.wait()
            except asyncio.CancelledError:
                self.dropped.append(request.key)
                raise
        return Answered(key_version=request.key)

    def close_gates(self, *keys: str) -> None:
        self.gates |= {key: asyncio.Event() for key in keys}

    def open(self, context: Context) -> "asyncio.Task[Any]":
        async def behaviour(context: Any, caller: Caller) -> None:
            await self.streams.serve(context, caller, self.sign)

        wrapped: Any = self.guard.stream(METHOD, grpc.stream_stream_rpc_method_handler(behaviour))
        return asyncio.ensure_future(context.serve(wrapped.stream_stream))

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        """Runs a scenario; afterwards no place is taken, and no stream is open."""

        async def whole() -> None:
            await scenario()

        asyncio.run(whole())
        assert self.places.taken == 0
        assert not self.streams._open
        assert not +self.streams._held


def answers(context: Context) -> dict[int, Any]:
    """What was written, by tag: a key's name, or an error's code."""
    read = [signing_pb2.SignStreamResponse.FromString(each) for each in context.written]
    return {
        each.tag: each.error.code
        if each.WhichOneof("result") == "error"
        else each.batch.key_version
        for each in read
    }


def test_requests_are_answered_when_they_are_done_and_errors_are_their_own() -> None:
    stage = Stage()

    async def scenario() -> None:
        stage.close_gates("slow")
        context = Context(ISSUER, message(7, "slow"), message(8, "bad"), b"\xff", message(9, "c"))
        stream = stage.open(context)
        await until(lambda: len(context.written) == 3)
        assert answers(context) == {8: 8, 0: 3, 9: "c"}
        stage.gates["slow"].set()
        await stream
        assert answers(context) == {8: 8, 0: 3, 9: "c", 7: "slow"}

    stage.run(scenario)
    ended = [(event.method, event.reason) for event in stage.recorder.of(CallEnded)]
    assert sorted(ended) == sorted(
        [
            (REQUEST, "ok"),
            (REQUEST, "ok"),
            (REQUEST, "QUOTA_EXCEEDED"),
            (REQUEST, "FIELD_INVALID"),
            (METHOD, "ok"),
        ]
    )
    assert stage.recorder.of(CallEnded)[-1].notes["requests"] == 4


def test_each_request_has_its_own_time() -> None:
    stage = Stage()

    async def scenario() -> None:
        await stage.open(Context(ISSUER, message(1, "a", seconds=5), message(2, "b")))

    stage.run(scenario)
    assert sorted(stage.deadlines) == [1005.0, 1030.0]


def test_a_stream_is_not_read_beyond_the_places_of_its_client() -> None:
    stage = Stage(of_one=2)

    async def scenario() -> None:
        stage.close_gates("a", "b")
        context = Context(ISSUER, message(1, "a"), message(2, "b"), message(3, "c"))
        stream = stage.open(context)
        await until(lambda: stage.begun == ["a", "b"])
        await asyncio.sleep(0.01)
        assert len(context.messages) == 1
        stage.gates["a"].set()
        await until(lambda: len(context.written) == 2)
        stage.gates["b"].set()
        await stream

    stage.run(scenario)
    assert stage.begun == ["a", "b", "c"]


def test_answers_that_are_not_read_keep_their_places() -> None:
    stage = Stage(of_one=2)

    async def scenario() -> None:
        context = Context(ISSUER, *(message(tag) for tag in range(4)))
        context.gate = asyncio.Event()
        stream = stage.open(context)
        await until(lambda: len(stage.begun) == 2)
        await asyncio.sleep(0.01)
        assert (len(stage.begun), stage.places.taken) == (2, 2)
        context.gate.set()
        await stream
        assert len(context.written) == 4

    stage.run(scenario)


def test_another_policy_holds_for_the_next_request() -> None:
    stage = Stage()

    async def scenario() -> None:
        stage.close_gates("a")
        context = Context(ISSUER, message(1, "a"), silent=True)
        stream = stage.open(context)
        await until(lambda: stage.begun == ["a"])
        stage.served.snapshot = Snapshot(policy(), KeyIndex(()))
        stage.gates["a"].set()
        await until(lambda: len(context.written) == 1)
        late = Context(ISSUER, message(2))
        with pytest.raises(Aborted):
            await stage.open(late)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert answers(context) == {1: "a"}

    stage.run(scenario)


def test_a_request_after_the_policy_has_changed_is_refused_in_an_open_stream() -> None:
    stage = Stage()

    async def scenario() -> None:
        feed: asyncio.Queue[Any] = asyncio.Queue()
        context = Context(ISSUER)
        context.read = feed.get  # type: ignore[method-assign]
        stream = stage.open(context)
        feed.put_nowait(message(1, "a"))
        await until(lambda: answers(context) == {1: "a"})
        stage.served.snapshot = Snapshot(policy("spiffe://x/other"), KeyIndex(()))
        feed.put_nowait(message(2, "b"))
        await until(lambda: answers(context) == {1: "a", 2: 16})
        stage.served.snapshot = Snapshot(policy(ISSUER), KeyIndex(()))
        feed.put_nowait(message(3, "c"))
        await until(lambda: answers(context) == {1: "a", 2: 16, 3: "c"})
        feed.put_nowait(grpc.aio.EOF)
        await stream

    stage.run(scenario)


def ends(stage: Stage, end: Callable[[], None]) -> tuple[str, str, Context]:
    """Code and reason of a stream that is ended while one of its requests is in progress."""
    context = Context(ISSUER, message(1, "a"), silent=True)

    async def scenario() -> None:
        stage.close_gates("a")
        stream = stage.open(context)
        await until(lambda: context.waits)
        end()
        await asyncio.sleep(0.01)
        stage.gates["a"].set()
        with pytest.raises(Aborted):
            await stream

    stage.run(scenario)
    return (*context.reason, context)


def test_a_drain_answers_what_was_read_and_ends_the_stream() -> None:
    stage = Stage()
    code, reason, context = ends(stage, stage.streams.drain)
    assert (code, reason) == ("UNAVAILABLE", "STREAM_ENDED")
    assert answers(context) == {1: "a"}

    async def scenario() -> None:
        late = Context(ISSUER, message(2))
        with pytest.raises(Aborted):
            await stage.open(late)
        assert late.reason == ("UNAVAILABLE", "STREAM_ENDED")

    stage.run(scenario)
    assert stage.begun == ["a"]


def test_the_end_of_the_certificate_ends_the_stream() -> None:
    stage = Stage()

    def later() -> None:
        stage.streams.expire()
        assert not any(stream.ended for stream in stage.streams._open)
        stage.clock.time = ENDS.timestamp()
        stage.streams.expire()

    code, reason, context = ends(stage, later)
    assert (code, reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert answers(context) == {1: "a"}


def test_an_idle_stream_ends_and_a_busy_one_does_not() -> None:
    stage = Stage()
    context = Context(ISSUER, message(1, "a"), silent=True)

    async def scenario() -> None:
        stage.close_gates("a")
        stream = stage.open(context)
        await until(lambda: context.waits)
        stage.clock.time += 2 * IDLE
        stage.streams.expire()  # a request is in progress
        stage.gates["a"].set()
        await until(lambda: len(context.written) == 1)
        stage.clock.time += IDLE - 1
        stage.streams.expire()
        await asyncio.sleep(0)
        assert not stream.done()
        stage.clock.time += 1
        stage.streams.expire()
        with pytest.raises(Aborted):
            await stream

    stage.run(scenario)
    assert context.reason == ("UNAVAILABLE", "STREAM_ENDED")


def test_streams_of_one_client_are_bounded() -> None:
    stage = Stage(streams=2)

    async def scenario() -> None:
        contexts = [Context(silent=True) for _ in range(2)]
        streams = [stage.open(context) for context in contexts]
        await until(lambda: all(context.waits for context in contexts))
        one_more = Context(ISSUER)
        with pytest.raises(Aborted):
            await stage.open(one_more)
        assert one_more.info.metadata["limit"] == "streams_per_client"
        for stream in streams:
            stream.cancel()
        await asyncio.wait(streams)
        await stage.open(Context(ISSUER))

    stage.run(scenario)


def test_what_a_caller_that_has_gone_asked_for_is_dropped() -> None:
    stage = Stage()

    async def scenario() -> None:
        stage.close_gates("a", "b")
        context = Context(ISSUER, message(1, "a"), message(2, "b"), silent=True)
        stream = stage.open(context)
        await until(lambda: stage.begun == ["a", "b"])
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        assert sorted(stage.dropped) == ["a", "b"]

    stage.run(scenario)
    assert {event.reason for event in stage.recorder.of(CallDenied)} == {"CANCELLED"}


def test_a_caller_that_goes_while_an_answer_is_written() -> None:
    stage = Stage()

    async def scenario() -> None:
        context = Context(ISSUER, message(1, "a"), message(2, "b"), silent=True)

        async def write(_: object) -> NoReturn:
            raise grpc.aio.InternalError("the call has ended")

        context.write = write  # type: ignore[method-assign, assignment]
        stream = stage.open(context)
        await until(lambda: context.waits and len(stage.begun) == 2)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream

    stage.run(scenario)
