from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from signer.api.guard import DEFAULT_SECONDS, Caller, Guard, _Places
from signer.errors import CallError, Reason
from signer.model import Role
from signer.policy.rules import Policy

ISSUER, OPERATOR = "spiffe://signer.example/issuer", "spiffe://signer.example/operator"
METHOD = "/signer.v1.Signing/Sign"


class Aborted(Exception):  # noqa: N818 - what gRPC raises has no name either
    pass


class Context:
    """One call as gRPC shows it."""

    def __init__(self, uri: str = ISSUER, left: float | None = None) -> None:
        self.uri, self.left = uri, left
        self.status: Any = None

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return {"ssl_tls_version": [b"TLSv1.3"], "peer_uri": [self.uri.encode()]}

    def time_remaining(self) -> float | None:
        return self.left

    def abort_with_status(self, status: Any) -> NoReturn:
        self.status = status
        raise Aborted

    @property
    def reason(self) -> tuple[str, str]:
        """Code and reason of the refusal, which has one ErrorInfo."""
        [(_, data)] = self.status.trailing_metadata
        details = status_pb2.Status.FromString(data).details
        infos = [d for d in details if d.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)]
        assert len(infos) == 1
        info = error_details_pb2.ErrorInfo.FromString(infos[0].value)
        return self.status.code.name, info.reason


class Books:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.bugs: list[Exception] = []

    def call_done(
        self, method: str, code: str, reason: str, seconds: float, notes: Mapping[str, object]
    ) -> None:
        assert seconds >= 0
        self.notes = dict(notes)
        self.calls.append((method, code, reason))

    def our_bug(self, method: str, call_id: str, error: Exception) -> None:
        assert method == METHOD
        assert call_id
        self.bugs.append(error)


class Clock:
    def now(self) -> float:
        return 1e9

    def monotonic(self) -> float:
        return 500.0


@pytest.fixture
def books() -> Books:
    return Books()


Guarded = Callable[..., Any]


@pytest.fixture
def guarded(books: Books) -> Guarded:
    """Wraps a behaviour as the server would."""

    def wrap(behaviour: Any, *, calls: int = 4, share: int = 2, method: str = METHOD) -> Any:
        guard = Guard(
            policy=lambda: POLICY,
            roles={"signer.v1.Signing": frozenset({Role.ISSUER})},
            calls=calls,
            calls_per_client=share,
            observer=books,
            clock=Clock(),
        )
        handler: Any = grpc.unary_unary_rpc_method_handler(behaviour)
        details = cast(grpc.HandlerCallDetails, SimpleNamespace(method=method))
        return guard.intercept_service(lambda _: handler, details).unary_unary

    return wrap


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
        call("request", context)
    return context.reason


def test_a_behaviour_gets_request_and_caller(guarded: Guarded, books: Books) -> None:
    seen: list[tuple[Any, Caller]] = []

    def behaviour(request: Any, caller: Caller) -> str:
        seen.append((request, caller))
        return "answer"

    call = guarded(behaviour)
    assert call("request", Context(left=7.0)) == "answer"
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
    assert call("request", Context(left=left)) == 500.0 + DEFAULT_SECONDS


def test_who_is_nobody_or_has_not_the_role_is_refused(guarded: Guarded, books: Books) -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError("reached")

    call = guarded(never)
    assert refusal(call, Context("spiffe://x/y")) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert refusal(call, Context(OPERATOR)) == ("PERMISSION_DENIED", "POLICY_DENIED")
    closed = guarded(never, method="/signer.v1.Other/Call")
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


def test_a_bug_tells_an_id_and_nothing_else(guarded: Guarded, books: Books) -> None:
    def fail(*_: object) -> NoReturn:
        raise ValueError("a secret of the payload")

    context = Context()
    assert refusal(guarded(fail), context) == ("INTERNAL", "INTERNAL")
    assert "secret" not in str(context.status)
    [error] = books.bugs
    assert isinstance(error, ValueError)
    assert books.calls == [(METHOD, "INTERNAL", "INTERNAL")]


def test_health_passes_untouched(guarded: Guarded, books: Books) -> None:
    def check(*_: object) -> str:
        return "as it is"

    assert guarded(check, method="/grpc.health.v1.Health/Check") is check
    assert books.calls == []


def test_a_client_has_its_share_and_others_theirs(guarded: Guarded) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> str:
        entered.release()
        assert leave.wait(20)
        return "done"

    call = guarded(wait, calls=2, share=1)
    worker = threading.Thread(target=call, args=("request", Context()))
    worker.start()
    assert entered.acquire(timeout=20)
    assert refusal(call, Context()) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    leave.set()
    worker.join(20)
    assert call("request", Context()) == "done"


# --- places -----------------------------------------------------------------------------------


def test_places_are_counted_by_name_and_given_back() -> None:
    places = _Places(2)
    with places.taken("a", "full"), places.taken("a", "full"), places.taken("b", "full"):
        with pytest.raises(CallError) as caught, places.taken("a", "full"):
            pytest.fail("a third place")
        assert caught.value.reason is Reason.OVERLOADED
        assert caught.value.message == "full (2 at once): try again"
        assert caught.value.retry_after
    assert not places._taken  # names that left take no memory
    with places.taken("a", "full"), places.taken("a", "full"):
        pass


def test_a_place_is_given_back_after_an_error() -> None:
    places = _Places(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="x"), places.taken("a", "full"):
            raise ValueError("x")
