import asyncio
import hashlib
import math
from collections.abc import Callable
from typing import Any, NoReturn

import grpc
import pytest
from google.protobuf.message import DecodeError

from signer.api.guard import (
    DEFAULT_SECONDS,
    HEALTH_CALLS_PER_CLIENT,
    HEALTH_MESSAGE_SECONDS,
    MESSAGE_SECONDS,
    Caller,
    Guard,
)
from signer.api.identity import identity_of
from signer.api.places import Bound, Places
from signer.errors import CLIENT_LIMIT, CallError, Reason
from signer.events import Bug, CallBegan, CallDenied, CallEnded
from signer.key_index import KeyIndex
from signer.model import Role
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot
from tests.stand_ins import Recorder, SetClock
from tests.unit.api.context import ISSUER, OPERATOR, Aborted, Context, until

METHOD = "/signer.v1.Signing/Sign"
CLOSED = "/signer.v1.Other/Call"


class Books(Recorder):
    """The calls that were booked."""

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        for began in self.of(CallBegan):
            assert list(began.metadata) == [("traceparent", "00-1-2-01")]
        ended = self.of(CallEnded)
        assert len(ended) <= len(self.of(CallBegan))
        assert all(event.seconds >= 0 for event in ended)
        return [(event.method, event.code, event.reason) for event in ended]

    @property
    def notes(self) -> dict[str, object]:
        """Those of the last call."""
        return dict(self.of(CallEnded)[-1].notes)

    @property
    def bugs(self) -> list[tuple[Exception, dict[str, object]]]:
        return [(bug.error, dict(bug.notes)) for bug in self.of(Bug)]


@pytest.fixture
def books() -> Books:
    return Books()


def make_guard(books: Books, calls: int = 4, share: int = 2, size: int = 1000) -> Guard:
    return Guard(
        served=Served(Snapshot(POLICY, KeyIndex(()))),
        roles={"signer.v1.Signing": frozenset({Role.ISSUER})},
        places=Places(Bound(calls, share), Bound(size, size), Bound(calls * 2, share), Bound(8, 4)),
        events=books.events,
        clock=SetClock(500.0),
    )


def unary(guard: Guard, behaviour: Any, method: str = METHOD) -> Any:
    handler: Any = grpc.unary_unary_rpc_method_handler(behaviour, read, str.encode)
    wrapped: Any = guard.unary(method, handler)
    return wrapped.stream_unary


Guarded = Callable[..., Any]


@pytest.fixture
def guarded(books: Books) -> Guarded:
    """Wraps a behaviour as the server would."""
    return lambda behaviour, method=METHOD: unary(make_guard(books), behaviour, method)


def read(message: bytes) -> str:
    if message.startswith(b"\xff"):
        raise DecodeError("text that may quote the message")
    return message.decode()


POLICY = Policy(
    sha256="",
    roles={ISSUER: frozenset({Role.ISSUER}), OPERATOR: frozenset({Role.OPERATOR})},
    denied_certificates=frozenset(),
    groups={},
    facilities={},
    facilities_of={},
    groups_of={},
)


def sent(uri: str = ISSUER, left: float | None = None) -> Context:
    return Context(uri, b"request", left=left)


def served(call: Any, context: Context) -> Any:
    return asyncio.run(context.serve(call))


def refusal(call: Any, context: Context) -> tuple[str, str]:
    with pytest.raises(Aborted):
        served(call, context)
    return context.reason


async def never(*_: object) -> NoReturn:
    raise AssertionError("reached")


def test_a_behaviour_gets_request_and_caller(guarded: Guarded, books: Books) -> None:
    seen: list[tuple[Any, Caller]] = []

    async def behaviour(request: Any, caller: Caller) -> str:
        seen.append((request, caller))
        return "answer"

    assert served(guarded(behaviour), sent(left=7.0)) == b"answer"
    [(request, caller)] = seen
    assert (request, caller.principal, caller.roles) == (
        "request",
        ISSUER,
        frozenset({Role.ISSUER}),
    )
    assert caller.deadline == 507.0
    assert books.calls == [(METHOD, "OK", "ok")]
    assert books.notes == {"principal": ISSUER, "call_id": caller.call_id}


@pytest.mark.parametrize("left", [None, 1e12, 86_401.0])
def test_without_a_deadline_there_is_one(guarded: Guarded, left: float | None) -> None:
    async def behaviour(_: Any, caller: Caller) -> str:
        return str(caller.deadline)

    answer = served(guarded(behaviour), sent(left=left))
    assert float(answer) == 500.0 + DEFAULT_SECONDS


def test_a_stranger_or_another_role_is_refused(guarded: Guarded, books: Books) -> None:
    call = guarded(never)
    assert refusal(call, sent("spiffe://x/y")) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert refusal(call, sent(OPERATOR)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    closed = guarded(never, method=CLOSED)
    assert refusal(closed, sent(ISSUER)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert [call[1:] for call in books.calls] == [
        ("UNAUTHENTICATED", "PEER_UNKNOWN"),
        ("PERMISSION_DENIED", "POLICY_DENIED"),
        ("PERMISSION_DENIED", "POLICY_DENIED"),
    ]


def test_who_is_refused_is_named(guarded: Guarded, books: Books) -> None:
    stranger, other_role = sent("spiffe://x/y"), sent(OPERATOR)
    nul = sent("spiffe://x/y\0z")
    for context in (stranger, other_role, nul):
        refusal(guarded(never), context)
    ended = [dict(event.notes) for event in books.of(CallEnded)]
    certificate = identity_of(nul.auth_context()).name
    peer = {"peer": "ipv4:192.0.2.1:5000"}
    for notes, context in zip(ended, (stranger, other_role, nul), strict=True):
        assert notes.pop("call_id") == context.info.metadata["call_id"]
    assert ended == [
        {"principal": "spiffe://x/y", "rule": "default.deny", **peer},
        {"principal": OPERATOR, "rule": "roles", "role": "operator", **peer},
        {"certificate": certificate, **peer},
    ]
    assert books.of(CallDenied) == [
        CallDenied("spiffe://x/y", "", "PEER_UNKNOWN", METHOD, "", peer["peer"]),
        CallDenied(OPERATOR, "", "POLICY_DENIED", METHOD, "operator", peer["peer"]),
        CallDenied(certificate, "", "PEER_UNKNOWN", METHOD, "", peer["peer"]),
    ]
    assert OPERATOR in other_role.status[1]
    assert "operator" in other_role.status[1]


@pytest.mark.parametrize("error", [CallError(Reason.POLICY_DENIED, ""), ValueError()], ids=repr)
def test_of_a_name_that_does_not_exist_only_a_hash_is_kept(
    guarded: Guarded, books: Books, error: Exception
) -> None:
    name = "facilities/nguyen-van-a/keys/k"

    async def fail(_: object, caller: Caller) -> NoReturn:
        caller.notes["key"] = name
        raise error

    refusal(guarded(fail), sent())
    hashed = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    assert [event.notes["key"] for event in books.of(CallEnded)] == [hashed]
    assert [event.key for event in books.of(CallDenied)] == [hashed]
    assert all(notes["key"] == hashed for _, notes in books.bugs)


@pytest.mark.parametrize("reason", Reason)
def test_errors_of_ours_are_answered(guarded: Guarded, books: Books, reason: Reason) -> None:
    async def fail(*_: object) -> NoReturn:
        raise CallError(reason, "what to do", {"rule": "x"}, retry_after=1)

    code, named = refusal(guarded(fail), sent())
    assert named == reason
    assert books.calls == [(METHOD, code, reason)]
    assert books.bugs == []


def test_a_bug_shows_one_id_and_nothing_else(guarded: Guarded, books: Books) -> None:
    callers: list[Caller] = []

    async def fail(_: object, caller: Caller) -> NoReturn:
        callers.append(caller)
        caller.notes["items"] = 3
        raise ValueError("a secret of the payload")

    context = sent()
    assert refusal(guarded(fail), context) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(context.status)
    [(error, notes)], [caller] = books.bugs, callers
    assert isinstance(error, ValueError)
    assert notes == books.notes == {"call_id": caller.call_id, "principal": ISSUER, "items": 3}
    assert dict(context.info.metadata) == {"call_id": caller.call_id}
    assert caller.call_id in context.status[1]
    assert books.calls == [(METHOD, "INTERNAL", "INTERNAL")]


def test_a_caller_that_leaves_is_booked_as_cancelled(books: Books) -> None:
    guard = make_guard(books)
    entered = False

    async def work(*_: object) -> None:
        nonlocal entered
        entered = True
        await asyncio.Event().wait()

    async def scenario() -> None:
        context = sent()
        task = asyncio.ensure_future(context.serve(unary(guard, work)))
        await until(lambda: entered)
        assert guard.places.taken == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert books.calls == [(METHOD, "CANCELLED", "CANCELLED")]
    assert guard.places.taken == 0


def test_a_call_that_is_cancelled_at_its_deadline_is_booked_as_late(books: Books) -> None:
    guard = make_guard(books)

    async def work(*_: object) -> None:
        guard._clock.time = 506.99  # type: ignore[attr-defined]
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        served(unary(guard, work), sent(left=7.0))
    assert books.calls == [(METHOD, "DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")]


# --- the message ------------------------------------------------------------------------------


async def echo(request: str, _: Caller) -> str:
    return request


def test_the_first_message_counts(guarded: Guarded) -> None:
    call = guarded(echo)
    assert served(call, Context(ISSUER, b"", b"\xff")) == b""
    assert served(call, Context(ISSUER, b"a", b"b")) == b"a"


@pytest.mark.parametrize("messages", [(), (b"\xff",)], ids=["none", "no-message-of-ours"])
def test_without_a_message_that_can_be_read(
    guarded: Guarded, books: Books, messages: tuple[bytes, ...]
) -> None:
    context = Context(ISSUER, *messages)
    assert refusal(guarded(never), context) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert "quote" not in str(context.status)
    assert books.calls == [(METHOD, "INVALID_ARGUMENT", "FIELD_INVALID")]
    assert books.bugs == []


def test_nobody_waits_for_the_message_of_a_stranger(guarded: Guarded) -> None:
    context = Context("spiffe://x/y", silent=True)
    assert refusal(guarded(never), context) == ("UNAUTHENTICATED", "PEER_UNKNOWN")


@pytest.mark.parametrize(
    ("left", "seconds"), [(7.0, 7.0), (None, DEFAULT_SECONDS), (5000.0, MESSAGE_SECONDS)]
)
def test_a_message_that_is_late_ends_its_call(
    books: Books, left: float | None, seconds: float
) -> None:
    guard = make_guard(books)
    context = Context(left=left, silent=True)
    ends_at(guard, unary(guard, never), context, 500.0 + seconds)
    assert context.status[0] is grpc.StatusCode.CANCELLED
    assert books.calls == [(METHOD, "CANCELLED", "CANCELLED")]
    assert books.bugs == []


def ends_at(guard: Guard, call: Any, context: Context, end: float) -> None:
    """A call without a message is at work until ``end``, and not longer; it takes no place."""

    async def scenario() -> None:
        task = asyncio.ensure_future(context.serve(call))
        await until(lambda: context.waits)
        assert guard.places.taken == 0
        guard.expire(end - 0.001)
        await asyncio.sleep(0)
        assert context.waits
        guard.expire(end)
        with pytest.raises(Aborted):
            await task

    asyncio.run(scenario())
    assert not guard._messages._until
    assert not guard._messages._late


def test_a_call_at_work_is_never_ended(books: Books) -> None:
    guard = make_guard(books)

    async def work(*_: object) -> str:
        guard.expire(math.inf)
        await asyncio.sleep(0)
        return "done"

    assert served(unary(guard, work), sent(left=1.0)) == b"done"


# --- places -----------------------------------------------------------------------------------


def test_a_client_has_its_share_until_its_answer_is_out(books: Books) -> None:
    guard = make_guard(books, calls=4, share=1)
    entered, leave = 0, asyncio.Event()

    async def wait(*_: object) -> str:
        nonlocal entered
        entered += 1
        await leave.wait()
        return "done"

    async def scenario() -> None:
        call = unary(guard, wait)
        first = asyncio.ensure_future(sent().serve(call))
        await until(lambda: entered == 1)
        context = sent()
        with pytest.raises(Aborted):
            await context.serve(call)
        assert context.reason == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert context.info.metadata["limit"] == CLIENT_LIMIT
        assert books.notes["limit"] == CLIENT_LIMIT
        leave.set()
        assert await first == b"done"
        assert await sent().serve(call) == b"done"

    asyncio.run(scenario())
    assert guard.places.taken == 0


def test_a_message_that_is_too_much_is_refused(books: Books) -> None:
    guard = make_guard(books, size=5)
    context = sent()
    assert refusal(unary(guard, never), context) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert context.info.metadata["limit"] == "bytes_in_flight_per_client"


def test_a_message_waits_while_calls_of_its_client_hold_all_bytes(books: Books) -> None:
    """It is received once, and answered when there is room; nothing is refused."""
    guard = make_guard(books, calls=8, share=8, size=10)
    leave, at_work = asyncio.Event(), 0

    async def work(*_: object) -> str:
        nonlocal at_work
        at_work += 1
        await leave.wait()
        return "done"

    async def scenario() -> None:
        call = unary(guard, work)
        calls = [asyncio.ensure_future(sent(left=60.0).serve(call)) for _ in range(8)]
        await until(lambda: at_work == 1)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (at_work, guard.places.taken) == (1, 1)
        assert guard.places.reads._bound.total == 4  # and no more messages are received
        leave.set()
        assert await asyncio.gather(*calls) == [b"done"] * 8

    asyncio.run(scenario())
    assert books.calls == [(METHOD, "OK", "ok")] * 8
    assert (guard.places.taken, guard.places.arriving.total) == (0, 0)


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_answers_in_its_own_way(books: Books) -> None:
    guard = make_guard(books)

    async def behaviour(context: Any, caller: Caller) -> None:
        assert caller.principal == ISSUER
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    wrapped: Any = guard.stream(METHOD, grpc.stream_stream_rpc_method_handler(behaviour))
    context = Context(ISSUER, b"a", b"b")
    served(wrapped.stream_stream, context)
    assert context.written == [b"a", b"b"]
    assert books.calls == [(METHOD, "OK", "ok")]


def test_reflection_waits_for_messages_until_its_time(books: Books) -> None:
    guard = make_guard(books)

    async def behaviour(requests: Any, _: Any) -> Any:
        async for request in requests:
            yield request

    handler: Any = grpc.stream_stream_rpc_method_handler(behaviour, read, str.encode)
    wrapped: Any = guard.reflection(METHOD, handler)
    context = Context(ISSUER, b"a", b"b")
    served(wrapped.stream_stream, context)
    assert context.written == [b"a", b"b"]

    async def scenario() -> None:
        silent = Context(left=9.0, silent=True)
        task = asyncio.ensure_future(silent.serve(wrapped.stream_stream))
        await until(lambda: silent.waits)
        assert guard.places.taken == 1
        guard.expire(509.0)
        with pytest.raises(Aborted):
            await task

    asyncio.run(scenario())
    assert guard.places.taken == 0


# --- health -----------------------------------------------------------------------------------


def health(guard: Guard, behaviour: Any) -> Any:
    wrapped: Any = guard.health(grpc.unary_unary_rpc_method_handler(behaviour, read))
    return wrapped.stream_unary


async def echo_health(request: str, _: object) -> str:
    return request


def test_health_is_open_and_is_not_booked(books: Books) -> None:
    stranger = sent("spiffe://x/y")
    assert served(health(make_guard(books), echo_health), stranger) == "request"
    assert books.calls == []


def test_health_can_refuse_too(books: Books) -> None:
    async def full(*_: object) -> NoReturn:
        raise CallError(Reason.OVERLOADED, "full")

    assert refusal(health(make_guard(books), full), sent()) == ("RESOURCE_EXHAUSTED", "OVERLOADED")


def test_checks_without_a_message_are_few_and_short(books: Books) -> None:
    guard = make_guard(books)
    call = health(guard, echo_health)

    async def scenario() -> None:
        silent = [Context(silent=True) for _ in range(HEALTH_CALLS_PER_CLIENT)]
        tasks = [asyncio.ensure_future(context.serve(call)) for context in silent]
        await until(lambda: all(context.waits for context in silent))
        one_more = sent()
        with pytest.raises(Aborted):
            await one_more.serve(call)
        assert one_more.reason == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert await sent(OPERATOR).serve(call) == "request"
        guard.expire(500.0 + HEALTH_MESSAGE_SECONDS)
        for task in tasks:
            with pytest.raises(Aborted):
                await task
        assert await sent().serve(call) == "request"

    asyncio.run(scenario())
