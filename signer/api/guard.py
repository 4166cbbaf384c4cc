"""What every call passes: identity, role, the message, its place, deadline, errors.

Services get a ``Caller`` instead of gRPC's context; they return a message or raise
CallError, and do not use gRPC. Everything here runs on the event loop.
"""

import asyncio
import functools
import os
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from grpc_status import rpc_status

from signer.api import wire
from signer.api.identity import identity_of, principal_of, said
from signer.api.places import Bound, Place, Places
from signer.clock import DEADLINE_MARGIN, Clock
from signer.errors import CallError, Reason, invalid
from signer.events import CALL, Bug, CallBegan, CallDenied, CallEnded, CallTrace, Events
from signer.model import Role
from signer.policy.decide import UNKNOWN
from signer.signing.request import Served

T = TypeVar("T")

DEFAULT_SECONDS = 30.0
"""Deadline of a call that has none."""
MESSAGE_SECONDS = 60.0
"""How long a call waits for its message, whatever its deadline."""
HEALTH_MESSAGE_SECONDS = 2.0
"""The same for a health check, whose message is a few bytes."""
HEALTH_CALLS = 24
"""Health checks that may wait for their message at once."""
HEALTH_CALLS_PER_CLIENT = 8
"""Those of one client: a third, so that one client cannot block the checks of others."""
_CANCELLED = 1
"""google.rpc.Code of a call that was cancelled, or whose deadline passed, before it began."""

Context = grpc.aio.ServicerContext[Any, Any]
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(slots=True)
class Caller:
    """The caller and its deadline (monotonic seconds); ``notes`` go into the call's log line.

    ``place`` is what the call holds, once its message is there.
    """

    principal: str
    roles: frozenset[Role]
    deadline: float
    call_id: str
    notes: dict[str, object]
    place: Place | None = None


class Guard:
    """Wraps the handlers of all services.

    For a unary handler, gRPC would wait for the message before it calls us, for as long as
    the client likes. So every handler is registered as one for a stream of messages (the
    bytes on the wire are the same) and reads the one message itself, after its identity is
    known and for a limited time. ``roles`` has the roles that may call each service; health
    is open to all.
    """

    def __init__(
        self,
        *,
        served: Served,
        roles: Mapping[str, frozenset[Role]],
        places: Places,
        events: Events,
        clock: Clock,
    ) -> None:
        self._served = served
        self._roles = roles
        self.places = places
        self._health_calls = Bound(HEALTH_CALLS, HEALTH_CALLS_PER_CLIENT)
        self._messages = MessageWaits()
        self._events = events
        self._clock = clock

    def expire(self, now: float) -> None:
        """Ends the calls whose message was due by ``now`` (monotonic seconds).

        Infinity ends all that wait for a message.
        """
        self._messages.expire(now)

    def unary(self, method: str, handler: Any) -> Any:
        """Wraps a handler of one message, whose behaviour is a coroutine (request, caller)."""
        read, write = handler.request_deserializer, handler.response_serializer
        behaviour = handler.unary_unary

        async def call(_: object, context: Context) -> bytes:
            async def respond(caller: Caller) -> bytes:
                message, place = await self._message_and_place(context, caller)
                answer = behaviour(parsed(read, message), caller)
                del message  # which takes memory until the call has ended
                answered: bytes = write(await answer)
                place.answered(len(answered))
                return answered

            caller = functools.partial(self.identify, method, context)
            metadata = context.invocation_metadata() or ()
            answered, status = await self.booked(method, metadata, caller, respond)
            if status is not None:
                await abort(context, status)
            return answered  # type: ignore[return-value] # aborted without an answer

        return grpc.stream_unary_rpc_method_handler(call)

    def stream(self, method: str, handler: Any) -> Any:
        """Wraps a handler of a stream, whose behaviour is a coroutine (context, caller).

        The behaviour reads and writes bytes. Each request of a stream is a call of its own,
        which the behaviour books by ``booked``; the stream as a whole has no place.
        """
        behaviour = handler.stream_stream

        async def call(_: object, context: Context) -> None:
            async def answer(caller: Caller) -> None:
                await behaviour(context, caller)

            caller = functools.partial(self.identify, method, context)
            metadata = context.invocation_metadata() or ()
            _, status = await self.booked(method, metadata, caller, answer)
            if status is not None:
                await abort(context, status)

        return grpc.stream_stream_rpc_method_handler(call)

    def reflection(self, method: str, handler: Any) -> Any:
        """Wraps reflection, whose behaviour is an asynchronous generator of gRPC's own."""
        behaviour, read, write = (
            handler.stream_stream,
            handler.request_deserializer,
            handler.response_serializer,
        )

        async def converse(context: Context, caller: Caller) -> None:
            async def requests() -> Any:
                while (message := await self._receive(context, caller)) is not None:
                    self._received(caller)
                    yield parsed(read, message)
                self._received(caller)

            self._keep(context, caller, self.places.take(caller.principal, 0))
            async for response in behaviour(requests(), context):
                await context.write(write(response))

        return self.stream(method, grpc.stream_stream_rpc_method_handler(converse))

    def health(self, handler: Any) -> Any:
        """Wraps a health check or watch, whose behaviour is a coroutine (request, context)."""
        behaviour = handler.unary_unary or handler.unary_stream

        async def call(_: object, context: Context) -> Any:
            client = identity_of(context.auth_context()).name
            until = self._clock.monotonic() + HEALTH_MESSAGE_SECONDS
            try:
                self._check_health_calls(client)
                self._health_calls.add(client, 1)
                try:
                    message = await self._messages.wait(context.read(), until)
                finally:
                    self._health_calls.add(client, -1)
                if message is grpc.aio.EOF:
                    raise _missing()
                return await behaviour(parsed(handler.request_deserializer, message), context)
            except CallError as error:
                await abort(context, wire.call_status(error))
            except MessageLateError:
                await abort(context, _LATE)

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(call, None, handler.response_serializer)
        return grpc.stream_stream_rpc_method_handler(call, None, handler.response_serializer)

    async def booked(
        self,
        method: str,
        metadata: Metadata,
        identify: Callable[[float, str, dict[str, object]], Caller],
        respond: Callable[[Caller], Awaitable[T]],
    ) -> tuple[T | None, status_pb2.Status | None]:
        """Runs one call: its identity, its answer, and what is reported of it.

        Returns the answer, or the status of a call that failed.
        """
        started = self._clock.monotonic()
        call_id = new_call_id()
        notes: dict[str, object] = {"call_id": call_id}
        code, reason, status = 0, "ok", None
        caller: Caller | None = None
        CALL.set(CallTrace())
        self._events.emit(CallBegan(method, metadata))
        try:
            caller = identify(started, call_id, notes)
            return await respond(caller), None
        except CallError as error:
            status = wire.call_status(error, call_id)
            code, reason = status.code, error.reason
            notes |= {name: error.metadata[name] for name in _NOTED if name in error.metadata}
            self._hash_unknown_name(notes)
        except MessageLateError:
            status, code, reason = _LATE, _CANCELLED, wire.code_name(_CANCELLED)
        except (asyncio.CancelledError, grpc.aio.BaseError):
            code, reason = _CANCELLED, wire.code_name(_CANCELLED)  # the caller has gone
            self._hash_unknown_name(notes)
            if caller is not None and self._clock.monotonic() > caller.deadline - DEADLINE_MARGIN:
                code, reason = Reason.DEADLINE_TOO_SHORT.code, Reason.DEADLINE_TOO_SHORT
            raise
        except Exception as error:  # noqa: BLE001 - its text must not reach the caller
            self._hash_unknown_name(notes)
            self._events.emit(Bug(method, error, notes))
            text = f"internal error: report the id {call_id} to the operator"
            status = wire.call_status(CallError(Reason.INTERNAL, text), call_id)
            code, reason = status.code, Reason.INTERNAL
        finally:
            seconds = self._clock.monotonic() - started
            self._events.emit(CallEnded(method, wire.code_name(code), reason, seconds, notes))
            CALL.set(None)
            if reason == "ok" and notes.get("failed") and notes["failed"] == notes["items"]:
                reason = "ALL_ITEMS_FAILED"
            if reason != "ok":
                self._events.emit(_denied(method, reason, notes))
        return None, status

    def _hash_unknown_name(self, notes: dict[str, object]) -> None:
        """Keeps only a hash of a key's name that the caller has invented."""
        if "key" in notes:
            notes["key"] = self._served.snapshot.known(str(notes["key"]))

    def _check_health_calls(self, client: str) -> None:
        if exceeded := self._health_calls.exceeded(client, 1):
            own, most = exceeded
            text = f"too many {'of your ' if own else ''}health checks ({most} at once): try again"
            raise CallError(Reason.OVERLOADED, text, retry_after=0.1)

    def identify(
        self, method: str, context: Context, now: float, call_id: str, notes: dict[str, object]
    ) -> Caller:
        """Returns who calls, in which roles, until when. Raises CallError."""
        policy, peer = self._served.snapshot.policy, context.auth_context()
        identity = identity_of(peer)
        notes |= said(identity)
        try:
            principal = principal_of(peer, policy.denied_certificates)
            roles = self.allowed(method, principal)
        except CallError:
            notes["peer"] = context.peer()
            raise
        left = context.time_remaining()
        seconds = DEFAULT_SECONDS if left is None or left > 3600 * 24 else left
        return Caller(principal, roles, now + seconds, call_id, notes)

    def allowed(self, method: str, principal: str) -> frozenset[Role]:
        """Returns the roles that a principal has now. Raises CallError if none may call."""
        roles = self._served.snapshot.policy.roles.get(principal)
        if not roles:
            raise CallError(
                Reason.PEER_UNKNOWN,
                f"{UNKNOWN.message}: {principal}",
                {"rule": UNKNOWN.rule, "principal": principal},
            )
        service = method.split("/")[1]
        if not roles & self._roles.get(method[1:], self._roles.get(service, frozenset())):
            role = ", ".join(sorted(roles))
            raise CallError(
                Reason.POLICY_DENIED,
                f"{service} is not open to {principal}, whose role is {role}",
                {"rule": "roles", "role": role, "principal": principal},
            )
        return roles

    async def _message_and_place(self, context: Context, caller: Caller) -> tuple[bytes, Place]:
        """Returns the one message of a call, and the place that the call has taken for it."""
        message = await self._receive(context, caller)
        try:
            if message is None:
                raise _missing()
            left = caller.deadline - self._clock.monotonic()
            place = await self.places.enter(caller.principal, len(message), left)
        finally:
            self._received(caller)
        self._keep(context, caller, place)
        return message, place

    async def _receive(self, context: Context, caller: Caller) -> bytes | None:
        """Receives the next message, None at their end; this turn lasts until ``_received``."""
        until = min(caller.deadline, self._clock.monotonic() + MESSAGE_SECONDS)
        places, principal, wait = self.places, caller.principal, self._messages.wait
        places.arrive(principal)
        try:
            await wait(places.reads.begin(principal), until)
        except BaseException:
            places.arrived(principal)
            raise
        try:
            message = await wait(context.read(), until)
        except BaseException:
            self._received(caller)
            raise
        return None if message is grpc.aio.EOF else cast(bytes, message)

    def _received(self, caller: Caller) -> None:
        self.places.reads.end(caller.principal)
        self.places.arrived(caller.principal)

    def _keep(self, context: Context, caller: Caller, place: Place) -> None:
        """Keeps a place until the call has ended and its answer is out."""
        caller.place = place

        def ended(_: Context) -> None:
            place.give_back()

        context.add_done_callback(ended)  # type: ignore[arg-type] # the stubs declare a Protocol


_NOTED = ("rule", "limit", "role")
"""Metadata of an error that the call's log line has as well."""


def _denied(method: str, reason: str, notes: Mapping[str, object]) -> CallDenied:
    """Returns what the audit log gets of a call that was refused or failed."""

    def note(name: str) -> str:
        return str(notes.get(name, ""))

    caller = note("principal") or note("certificate")
    return CallDenied(caller, note("key"), reason, method, note("role"), note("peer"))


_RANDOM = random.Random(os.urandom(32))  # noqa: S311 - ids are names, not secrets
_VERSION_4, _FREE = 0x4000_8000 << 48, ~(0xF000_C000 << 48)


def new_call_id() -> str:
    """Returns a new UUID of version 4 (RFC 9562 section 5.4), without a system call."""
    digits = f"{_RANDOM.getrandbits(128) & _FREE | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class MessageLateError(Exception):
    """A call whose message has not come in time."""


_LATE = status_pb2.Status(code=_CANCELLED, message="the message of this call did not come in time")
"""Without details: it has no reason of ours."""


class MessageWaits:
    """The calls that wait for a message, with the time until which they may."""

    def __init__(self) -> None:
        self._until: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()

    async def wait(self, awaited: Awaitable[T], until: float) -> T:
        """Returns what is awaited; raises MessageLateError after ``until``, monotonic seconds."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._until[task] = until
        try:
            return await awaited
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            self._late.discard(task)
            task.uncancel()
            raise MessageLateError from None
        finally:
            del self._until[task]

    def expire(self, now: float) -> None:
        """Ends the waits until ``now``."""
        for task, end in self._until.items():
            if end <= now and task not in self._late:
                self._late.add(task)
                task.cancel()


def parsed(read: Callable[[bytes], Any], message: bytes) -> Any:
    """Returns a message of the API; raises CallError for other bytes."""
    try:
        return read(message)
    except DecodeError:
        raise invalid("request", "cannot be parsed as the message of this method") from None


def _missing() -> CallError:
    return invalid("request", "is missing: the call ended without a message")


async def abort(context: Context, status: status_pb2.Status) -> None:
    """Ends a call with a status; raises what ends its coroutine."""
    ended = rpc_status.to_status(status)
    details = ended.trailing_metadata if status.details else ()
    await context.abort(ended.code, ended.details, details)
