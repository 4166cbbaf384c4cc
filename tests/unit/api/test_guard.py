import math
import threading
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from signer.api.guard import (
    DEFAULT_SECONDS,
    HEALTH_CALLS_PER_CLIENT,
    HEALTH_MESSAGE_SECONDS,
    MESSAGE_SECONDS,
    Caller,
    CallLimit,
    Guard,
)
from signer.errors import CLIENT_LIMIT, CallError, Reason
from signer.events import Bug, CallBegan, CallEnded
from signer.keys.index import KeyIndex
from signer.model import Role
from signer.policy.rules import Policy
from signer.signing.request import Served, Snapshot
from tests.stand_ins import Recorder, SetClock

ISSUER, OPERATOR = "spiffe://signer.example/issuer", "spiffe://signer.example/operator"
METHOD = "/signer.v1.Signing/Sign"
CLOSED = "/signer.v1.Other/Call"


class Aborted(Exception):
    pass


class Context:
    """One call as gRPC shows it."""

    def __init__(self, uri: str = ISSUER, left: float | None = None) -> None:
        self.uri, self.left = uri, left
        self.status: Any = None
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    def messages(self) -> Iterator[bytes]:
        """A client that sends nothing; as gRPC does, it raises when the call is cancelled."""
        self.waiting.set()
        assert self.cancelled.wait(20)
        raise grpc.RpcError
        yield b""

    def cancel(self) -> None:
        self.cancelled.set()

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"ssl_tls_version": [b"TLSv1.3"], "peer_uri": [self.uri.encode()]}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("traceparent", "00-1-2-01")]

    def time_remaining(self) -> float | None:
        return self.left

    def abort_with_status(self, status: Any) -> NoReturn:
        self.status = status
        raise Aborted

    @property
    def reason(self) -> tuple[str, str]:
        """Code and reason of the refusal."""
        return self.status.code.name, self.info.reason

    @property
    def info(self) -> Any:
        """The one ErrorInfo of the refusal."""
        [(_, data)] = self.status.trailing_metadata
        details = status_pb2.Status.FromString(data).details
        infos = [d for d in details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
        assert len(infos) == 1
        return error_details_pb2.ErrorInfo.FromString(infos[0].value)


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


Guarded = Callable[..., Any]


@pytest.fixture
def guarded(books: Books) -> Guarded:
    """Wraps a behaviour as the server would."""

    def wrap(behaviour: Any, *, calls: int = 4, share: int = 2, method: str = METHOD) -> Any:
        guard = make_guard(books, calls, share)
        handler: Any = grpc.unary_unary_rpc_method_handler(behaviour, read)
        return intercepted(guard, handler, method).stream_unary

    return wrap


def make_guard(books: Books, calls: int = 4, share: int = 2) -> Guard:
    return Guard(
        served=Served(Snapshot(POLICY, KeyIndex(()))),
        roles={"signer.v1.Signing": frozenset({Role.ISSUER})},
        calls=calls,
        calls_per_client=share,
        events=books.events,
        clock=SetClock(500.0),
    )


def intercepted(guard: Guard, handler: Any, method: str = METHOD) -> Any:
    details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=method))
    return guard.intercept_service(lambda _: handler, details)


def read(message: bytes) -> str:
    if message.startswith(b"\xff"):
        raise DecodeError("text that may quote the message")
    return message.decode()


def sent(*messages: bytes) -> Iterator[bytes]:
    return iter(messages or (b"request",))


POLICY = Policy(
    sha256="",
    roles={ISSUER: frozenset({Role.ISSUER}), OPERATOR: frozenset({Role.OPERATOR})},
    denied_certificates=frozenset(),
    groups={},
    facilities={},
    facilities_of={},
    groups_of={},
)


def refusal(call: Any, context: Context) -> tuple[str, str]:
    with pytest.raises(Aborted):
        call(sent(), context)
    return context.reason


def test_a_behaviour_gets_request_and_caller(guarded: Guarded, books: Books) -> None:
    seen: list[tuple[Any, Caller]] = []

    def behaviour(request: Any, caller: Caller) -> str:
        seen.append((request, caller))
        return "answer"

    call = guarded(behaviour)
    assert call(sent(), Context(left=7.0)) == "answer"
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
    call = guarded(lambda _, caller: caller.deadline)
    assert call(sent(), Context(left=left)) == 500.0 + DEFAULT_SECONDS


def test_who_is_nobody_or_has_not_the_role_is_refused(guarded: Guarded, books: Books) -> None:
    call = guarded(never)
    assert refusal(call, Context("spiffe://x/y")) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert refusal(call, Context(OPERATOR)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    closed = guarded(never, method=CLOSED)
    assert refusal(closed, Context(ISSUER)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    assert [call[1:] for call in books.calls] == [
        ("UNAUTHENTICATED", "PEER_UNKNOWN"),
        ("PERMISSION_DENIED", "POLICY_DENIED"),
        ("PERMISSION_DENIED", "POLICY_DENIED"),
    ]


@pytest.mark.parametrize("reason", Reason)
def test_errors_of_ours_are_told(guarded: Guarded, books: Books, reason: Reason) -> None:
    def fail(*_: object) -> NoReturn:
        raise CallError(reason, "what to do", {"rule": "x"}, retry_after=1)

    context = Context()
    code, told = refusal(guarded(fail), context)
    assert told == reason
    assert books.calls == [(METHOD, code, reason)]
    assert books.bugs == []


def test_a_bug_tells_one_id_and_nothing_else(guarded: Guarded, books: Books) -> None:
    callers: list[Caller] = []

    def fail(_: object, caller: Caller) -> NoReturn:
        callers.append(caller)
        caller.notes["items"] = 3
        raise ValueError("a secret of the payload")

    context = Context()
    assert refusal(guarded(fail), context) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(context.status)
    [(error, notes)], [caller] = books.bugs, callers
    assert isinstance(error, ValueError)
    assert notes == books.notes == {"call_id": caller.call_id, "principal": ISSUER, "items": 3}
    assert dict(context.info.metadata) == {"call_id": caller.call_id}
    assert caller.call_id in context.status.details
    assert books.calls == [(METHOD, "INTERNAL", "INTERNAL")]


# --- the message ------------------------------------------------------------------------------


def test_the_first_message_counts(guarded: Guarded) -> None:
    call = guarded(lambda request, _: request)
    assert call(sent(b"", b"\xff"), Context()) == ""
    assert call(sent(b"a", b"b"), Context()) == "a"


@pytest.mark.parametrize("messages", [(), (b"\xff",)], ids=["none", "no-message-of-ours"])
def test_without_a_message_that_can_be_read(
    guarded: Guarded, books: Books, messages: tuple[bytes, ...]
) -> None:
    context = Context()
    with pytest.raises(Aborted):
        guarded(never)(iter(messages), context)
    assert context.reason == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert "quote" not in str(context.status)
    assert books.calls == [(METHOD, "INVALID_ARGUMENT", "FIELD_INVALID")]
    assert books.bugs == []


def test_nobody_waits_for_the_message_of_a_stranger(guarded: Guarded) -> None:
    context = Context("spiffe://x/y")
    with pytest.raises(Aborted):
        guarded(never)(context.messages(), context)
    assert not context.waiting.is_set()


@pytest.mark.parametrize(
    ("left", "seconds"), [(7.0, 7.0), (None, DEFAULT_SECONDS), (5000.0, MESSAGE_SECONDS)]
)
def test_a_message_that_is_late_ends_its_call(
    books: Books, left: float | None, seconds: float
) -> None:
    guard = make_guard(books)
    call = intercepted(guard, grpc.unary_unary_rpc_method_handler(never, read)).stream_unary
    ends_at(guard, call, Context(left=left), 500.0 + seconds)
    assert books.calls == [(METHOD, "CANCELLED", "CANCELLED")]
    assert books.bugs == []


def ends_at(guard: Guard, call: Any, context: Context, end: float, *send: object) -> None:
    """A call without a message is at work until ``end``, and not longer."""
    left: list[object] = []

    def run() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            list(call(context.messages(), context, *send) or ())
        left.append(caught)

    worker = threading.Thread(target=run)
    worker.start()
    assert context.waiting.wait(20)
    guard.expire(end - 0.001)
    assert not context.cancelled.is_set()
    guard.expire(end)
    worker.join(20)
    assert left
    assert not guard._timeouts._until


def test_a_call_at_work_is_never_ended(books: Books) -> None:
    guard = make_guard(books)
    context = Context(left=1.0)

    def work(*_: object) -> str:
        guard.expire(math.inf)
        return "done"

    handler = intercepted(guard, grpc.unary_unary_rpc_method_handler(work, read))
    assert handler.stream_unary(sent(), context) == "done"
    assert not context.cancelled.is_set()


def never(*_: object) -> NoReturn:
    raise AssertionError("reached")


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_holds_both_places_until_it_ends(books: Books) -> None:
    guard = make_guard(books, calls=2, share=1)
    handler: Any = grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
    call = intercepted(guard, handler).stream_stream
    first, context = call(iter("ab"), Context()), Context()
    assert next(first) == "a"
    with pytest.raises(Aborted):
        next(call(iter("c"), context))
    assert context.reason == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    first.close()  # as when gRPC drops a stream that was cancelled
    assert list(call(iter("cd"), Context())) == ["c", "d"]


def test_a_stream_ends_with_its_time(books: Books) -> None:
    guard = make_guard(books)
    handler: Any = grpc.stream_stream_rpc_method_handler(lambda requests, _: requests)
    ends_at(guard, intercepted(guard, handler).stream_stream, Context(left=9.0), 509.0)


# --- health -----------------------------------------------------------------------------------

HEALTH = "/grpc.health.v1.Health/Any"


def test_health_is_open_and_gets_its_context(guarded: Guarded, books: Books) -> None:
    call = guarded(lambda request, context: (request, context), method=HEALTH)
    stranger = Context("spiffe://x/y")
    assert call(sent(), stranger) == ("request", stranger)
    assert books.calls == []


def test_a_watch_gets_its_way_to_send(books: Books) -> None:
    told: list[str] = []
    handler: Any = grpc.unary_stream_rpc_method_handler(
        lambda request, _, send: send(request), read
    )
    call = intercepted(make_guard(books), handler, HEALTH).stream_stream
    assert call.experimental_non_blocking
    call(sent(), Context(), told.append)
    assert told == ["request"]


def test_health_can_refuse_too(guarded: Guarded) -> None:
    def full(*_: object) -> NoReturn:
        raise CallError(Reason.OVERLOADED, "full")

    call = guarded(full, method=HEALTH)
    assert refusal(call, Context()) == ("RESOURCE_EXHAUSTED", "OVERLOADED")


def test_checks_without_a_message_are_few_and_short(books: Books) -> None:
    guard = make_guard(books)
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda request, _: request, read)
    call = intercepted(guard, handler, HEALTH).stream_unary

    def wait(context: Context) -> None:
        with pytest.raises(grpc.RpcError):
            call(context.messages(), context)

    silent = [Context() for _ in range(HEALTH_CALLS_PER_CLIENT)]
    workers = [threading.Thread(target=wait, args=(context,)) for context in silent]
    for worker in workers:
        worker.start()
    assert all(context.waiting.wait(20) for context in silent)
    assert refusal(call, Context()) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert call(sent(), Context(OPERATOR)) == "request"
    guard.expire(500.0 + HEALTH_MESSAGE_SECONDS)
    for worker in workers:
        worker.join(20)
    assert call(sent(), Context()) == "request"


# --- shares -----------------------------------------------------------------------------------


def test_a_client_has_its_share_and_others_theirs(guarded: Guarded, books: Books) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> str:
        entered.release()
        assert leave.wait(20)
        return "done"

    call = guarded(wait, calls=2, share=1)
    worker = threading.Thread(target=call, args=(sent(), Context()))
    worker.start()
    assert entered.acquire(timeout=20)
    context = Context()
    assert refusal(call, context) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert context.info.metadata["limit"] == CLIENT_LIMIT
    assert books.notes["limit"] == CLIENT_LIMIT
    leave.set()
    worker.join(20)
    assert call(sent(), Context()) == "done"


# --- places -----------------------------------------------------------------------------------


def test_places_are_counted_by_name_and_given_back() -> None:
    limit = CallLimit(2)
    with limit.acquire("a", "full"), limit.acquire("a", "full"), limit.acquire("b", "full"):
        with pytest.raises(CallError) as caught, limit.acquire("a", "full"):
            pytest.fail("a third place")
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.message == "full (2 at once): try again"
        assert caught.value.retry_after
        assert caught.value.metadata == {}
    assert not limit._held  # names that left take no memory
    with limit.acquire("a", "full"), limit.acquire("a", "full"):
        pass


def test_a_refusal_names_the_setting_that_limits() -> None:
    limit = CallLimit(1, "calls")
    with limit.acquire("", "full"), pytest.raises(CallError) as caught, limit.acquire("", "full"):
        pytest.fail("a second place")
    assert caught.value.metadata == {"limit": "calls"}


def test_a_place_is_given_back_after_an_error() -> None:
    limit = CallLimit(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), limit.acquire("a", "full"):
            raise ValueError("x")
