"""SignStream from threads and from tasks, against an appliance that is played."""

import asyncio
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest

from signer.client import (
    AsyncSignerClient,
    DeadlineError,
    DeniedError,
    ItemError,
    SignerClientError,
    UnavailableError,
)
from signer.v1.signing_pb2 import FORMAT_JWS, SignStreamResponse
from tests.unit.client.at_once import Together, in_tasks, in_threads, numbered

KEY = "facilities/f/keys/k"


def by_threads(
    stage: Any, script: Any, payloads: Sequence[bytes], timeouts: Sequence[float] = ()
) -> list[Any]:
    stage.played.stream = script or stage.played.stream
    with stage.client() as client, client.stream(KEY, "JWS") as stream:
        return in_threads(
            lambda payload, timeout: stream.sign(payload, timeout=timeout), payloads, timeouts
        )


def by_tasks(
    stage: Any, script: Any, payloads: Sequence[bytes], timeouts: Sequence[float] = ()
) -> list[Any]:
    stage.played.stream = script or stage.played.stream

    async def work(client: AsyncSignerClient) -> list[Any]:
        async with client.stream(KEY, "JWS") as stream:
            return await in_tasks(
                lambda payload, timeout: stream.sign(payload, timeout=timeout), payloads, timeouts
            )

    found: list[Any] = stage.run(work)
    return found


@pytest.fixture(params=[by_threads, by_tasks])
def together(request: pytest.FixtureRequest) -> Together:
    chosen: Together = request.param
    return chosen


def sigs(count: int) -> list[bytes]:
    return [b"sig:" + payload for payload in numbered(count)]


def answer(stage: Any, request: Any, failures: Any = None) -> SignStreamResponse:
    return SignStreamResponse(tag=request.tag, batch=stage.signed(request.batch, failures or {}))


def test_items_go_over_one_stream_and_are_answered_in_any_order(
    stage: Any, together: Together
) -> None:
    def backwards(requests: Iterator[Any], _: int) -> Iterator[Any]:
        while four := list(itertools.islice(requests, 4)):
            for request in reversed(four):
                yield answer(stage, request)

    assert together(stage, backwards, numbered(40)) == sigs(40)
    messages = stage.played.messages
    assert stage.played.streams == 1
    assert len({message.tag for message in messages}) == 40
    assert len({message.batch.request_id for message in messages}) == 40
    assert {message.batch.key for message in messages} == {KEY}
    assert {message.batch.format for message in messages} == {FORMAT_JWS}
    assert all(19 < message.timeout.ToSeconds() + 1 <= 21 for message in messages)


def test_an_error_is_that_of_its_request(stage: Any, together: Together) -> None:
    denied = stage.status(grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", metadata={"a": "b"})
    bad = stage.status(grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_INVALID")

    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            [payload] = request.batch.payloads
            if payload == b"3":
                yield SignStreamResponse(tag=request.tag, error=denied)
            else:
                yield answer(stage, request, {0: bad} if payload == b"5" else {})

    results = together(stage, script, numbered(8))
    assert isinstance(results[3], DeniedError)
    assert results[3].metadata == {"a": "b"}
    assert isinstance(results[5], ItemError)
    assert results[5].reason == "PAYLOAD_INVALID"
    assert [r for r in results if isinstance(r, bytes)] == [
        s for i, s in enumerate(sigs(8)) if i not in {3, 5}
    ]
    assert stage.played.streams == 1


@pytest.mark.parametrize("end", ["drain", "lost", "over"])
def test_what_a_stream_leaves_unanswered_goes_over_the_next(
    stage: Any, together: Together, end: str
) -> None:
    """Under the same request ids, so that nothing is signed twice."""

    def script(requests: Iterator[Any], number: int) -> Iterator[Any]:
        if number < 2:
            for request in itertools.islice(requests, 3):
                yield answer(stage, request)
            next(requests)
            if end == "drain":
                stage.refuse(grpc.StatusCode.UNAVAILABLE, "", domain="", retry_after=0.02)
            elif end == "lost":
                stage.refuse(grpc.StatusCode.CANCELLED, "", domain="")
            return
        for request in requests:
            yield answer(stage, request)

    assert together(stage, script, numbered(20)) == sigs(20)
    ids: dict[bytes, set[str]] = {}
    for message in stage.played.messages:
        ids.setdefault(message.batch.payloads[0], set()).add(message.batch.request_id)
    assert sorted(ids) == sorted(numbered(20))
    assert all(len(each) == 1 for each in ids.values())
    assert stage.played.streams == 3


def test_a_request_refused_for_now_goes_again_under_its_id(stage: Any, together: Together) -> None:
    busy = stage.status(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.01)
    lost = stage.status(grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE", retry_after=0.01)
    seen: Counter[bytes] = Counter()

    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            [payload] = request.batch.payloads
            seen[payload] += 1
            if seen[payload] > 1:
                yield answer(stage, request)
            elif payload == b"0":
                yield SignStreamResponse(tag=request.tag, error=busy)
            else:
                yield answer(stage, request, {0: lost})

    assert together(stage, script, numbered(2)) == sigs(2)
    ids = {
        p: [m.batch.request_id for m in stage.played.messages if m.batch.payloads[0] == p]
        for p in numbered(2)
    }
    assert ids[b"0"][0] == ids[b"0"][1]
    assert ids[b"1"][0] != ids[b"1"][1]  # it was answered: a repetition would be, too


def test_a_callers_time_is_its_own(stage: Any, together: Together) -> None:
    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            if request.batch.payloads[0] != b"1":
                yield answer(stage, request)

    results = together(stage, script, numbered(4), [20, 0.3, 20, 20])
    assert isinstance(results.pop(1), DeadlineError)
    assert results == [b"sig:0", b"sig:2", b"sig:3"]
    [late] = [m for m in stage.played.messages if m.batch.payloads[0] == b"1"]
    assert 0 < late.timeout.ToMilliseconds() <= 300


def test_endless_patience_is_a_day_and_harms_nobody(stage: Any, together: Together) -> None:
    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            yield answer(stage, request)

    assert together(stage, script, numbered(3), [20, math.inf, 1e9]) == sigs(3)
    longest = sorted(message.timeout.ToSeconds() for message in stage.played.messages)
    assert longest[0] < 21
    assert all(24 * 3600 - 20 < seconds <= 24 * 3600 for seconds in longest[1:])


def test_an_appliance_without_streams_is_an_error(stage: Any, together: Together) -> None:
    script = stage.refusing(grpc.StatusCode.UNIMPLEMENTED, "", domain="")

    [error] = together(stage, script, numbered(1))
    assert type(error) is SignerClientError
    assert error.code == "UNIMPLEMENTED"


def test_nobody_listens(stage: Any) -> None:
    with (
        stage.connect("127.0.0.1:1") as client,
        client.stream(KEY, "JWS") as stream,
        pytest.raises(UnavailableError),
    ):
        stream.sign(b"x", timeout=1)


def test_a_payload_that_fits_in_no_message_fails_alone(stage: Any, together: Together) -> None:
    one, large, two = together(stage, None, [b"0", bytes(5_000_000), b"1"])
    assert [one, two] == sigs(2)
    assert isinstance(large, ItemError)
    assert stage.played.streams == 1


def test_a_stream_ends_well(stage: Any, together: Together) -> None:
    ended: list[str] = []

    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        try:
            for request in requests:
                yield answer(stage, request)
            ended.append("well")
        except BaseException as error:
            ended.append(repr(error))
            raise

    assert together(stage, script, numbered(5)) == sigs(5)
    assert ended == ["well"]


def test_a_close_takes_the_answers_to_what_was_sent(stage: Any) -> None:
    came = threading.Event()

    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            came.set()
            time.sleep(0.3)
            yield answer(stage, request)

    stage.played.stream = script
    results: list[bytes] = []
    with stage.client() as client:
        with client.stream(KEY, "JWS") as stream:
            thread = threading.Thread(target=lambda: results.append(stream.sign(b"0")))
            thread.start()
            assert came.wait(20)
        thread.join(20)
        with pytest.raises(UnavailableError, match="CLOSED"):
            stream.sign(b"1")
    assert results == sigs(1)


def held(stage: Any) -> tuple[threading.Event, threading.Event]:
    """Holds answers back: the first event is set when a request has come, the other ends it."""
    came, over = threading.Event(), threading.Event()

    def script(requests: Iterator[Any], _: int) -> Iterator[Any]:
        for request in requests:
            came.set()
            over.wait(20)
            yield answer(stage, request)

    stage.played.stream = script
    return came, over


def test_a_close_without_waiting_ends_what_waits(stage: Any) -> None:
    came, over = held(stage)

    async def work(client: AsyncSignerClient) -> list[Any]:
        stream = client.stream(KEY, "JWS")
        tasks = [asyncio.create_task(stream.sign(p)) for p in numbered(3)]
        await stage.until(came.is_set)
        await stream.close(wait=False)
        over.set()
        with pytest.raises(UnavailableError, match="CLOSED"):
            await stream.sign(b"x")
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    errors = stage.run(work)
    assert len(errors) == 3
    assert all(isinstance(e, UnavailableError) and e.reason == "CLOSED" for e in errors)


def test_a_cancelled_task_leaves_the_stream_to_the_others(stage: Any) -> None:
    came, over = held(stage)

    async def work(client: AsyncSignerClient) -> list[Any]:
        async with client.stream(KEY, "JWS") as stream:
            tasks = [asyncio.create_task(stream.sign(p)) for p in numbered(3)]
            await stage.until(came.is_set)
            tasks[1].cancel()
            over.set()
            return list(await asyncio.gather(*tasks, return_exceptions=True))

    first, cancelled, last = stage.run(work)
    assert (first, last) == (b"sig:0", b"sig:2")
    assert isinstance(cancelled, asyncio.CancelledError)
