"""``sign_one``, called by threads and by tasks, against an appliance that is played."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from signer.client import (
    AsyncSignerClient,
    DeadlineError,
    DeniedError,
    InvalidRequestError,
    ItemError,
    SignerClient,
    SignerClientError,
    UnavailableError,
)
from tests.unit.client.at_once import Together, in_tasks, in_threads, numbered

KEY = "facilities/f/keys/k"


def by_threads(
    stage: Any, script: Any, payloads: Sequence[bytes], timeouts: Sequence[float] = ()
) -> list[Any]:
    with stage.client(script) as client:
        return in_threads(
            lambda payload, timeout: client.sign_one(KEY, "JWS", payload, timeout=timeout),
            payloads,
            timeouts,
        )


def by_tasks(
    stage: Any, script: Any, payloads: Sequence[bytes], timeouts: Sequence[float] = ()
) -> list[Any]:
    async def work(client: AsyncSignerClient) -> list[Any]:
        return await in_tasks(
            lambda payload, timeout: client.sign_one(KEY, "JWS", payload, timeout=timeout),
            payloads,
            timeouts,
        )

    found: list[Any] = stage.run(work, script)
    return found


@pytest.fixture(params=[by_threads, by_tasks])
def together(request: pytest.FixtureRequest) -> Together:
    chosen: Together = request.param
    return chosen


def payloads_of(stage: Any) -> Counter[bytes]:
    return Counter(payload for request in stage.played.requests for payload in request.payloads)


def test_each_caller_gets_its_signature_and_each_item_goes_once(
    stage: Any, together: Together
) -> None:
    def script(request: Any, _: int) -> Any:
        time.sleep(0.02)
        return stage.signed(request, {})

    results = together(stage, script, numbered(200))
    assert results == [b"sig:" + payload for payload in numbered(200)]
    assert payloads_of(stage) == Counter(numbered(200))
    requests = stage.played.requests
    assert len({request.request_id for request in requests}) == len(requests) < 100
    assert stage.played.most_at_work <= 2


def test_calls_have_no_more_items_than_the_policy_allows(stage: Any, together: Together) -> None:
    stage.played.max_batch_items = 7

    def script(request: Any, _: int) -> Any:
        time.sleep(0.02)
        return stage.signed(request, {})

    results = together(stage, script, numbered(60))
    assert all(isinstance(result, bytes) for result in results)
    assert max(len(request.payloads) for request in stage.played.requests) <= 7
    assert len(stage.played.requests) < 40


def test_large_items_do_not_go_together_beyond_a_message(stage: Any, together: Together) -> None:
    payloads = [bytes(1_500_000) + payload for payload in numbered(5)]
    results = together(stage, None, payloads)
    assert [len(result) for result in results] == [len(payload) + 4 for payload in payloads]


def test_a_payload_that_fits_in_no_call_fails_alone(stage: Any, together: Together) -> None:
    first, large, last = together(stage, None, [b"1", bytes(5_000_000), b"2"])
    assert (first, last) == (b"sig:1", b"sig:2")
    assert isinstance(large, ItemError)
    assert large.reason == "PAYLOAD_INVALID"


def test_an_items_error_is_its_own(stage: Any, together: Together) -> None:
    bad = stage.status(grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_INVALID", message="not JSON")

    def script(request: Any, _: int) -> Any:
        failures = {i: bad for i, each in enumerate(request.payloads) if each == b"13"}
        return stage.signed(request, failures)

    results = together(stage, script, numbered(30))
    failed = results.pop(13)
    assert isinstance(failed, ItemError)
    assert str(failed) == "PAYLOAD_INVALID: not JSON"
    assert all(isinstance(result, bytes) for result in results)


def test_a_refusal_of_all_is_raised_by_each_caller(stage: Any, together: Together) -> None:
    script = stage.refusing(
        grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", metadata={"rule": "clinic.x"}
    )
    results = together(stage, script, numbered(12))
    assert all(isinstance(error, DeniedError) for error in results)
    assert all(error.metadata == {"rule": "clinic.x"} for error in results)
    assert len({id(error) for error in results}) == 12


def test_a_batch_refused_for_one_item_is_sent_in_parts(stage: Any, together: Together) -> None:
    def script(request: Any, _: int) -> Any:
        time.sleep(0.01)
        if b"7" in request.payloads:
            stage.refuse(
                grpc.StatusCode.INVALID_ARGUMENT,
                "FIELD_INVALID",
                violations=(("payloads", "could have an answer of 5 MiB"),),
            )
        return stage.signed(request, {})

    results = together(stage, script, numbered(40))
    assert isinstance(results.pop(7), InvalidRequestError)
    assert all(isinstance(result, bytes) for result in results)


def test_a_lost_call_is_repeated_with_its_id(stage: Any, together: Together) -> None:
    lock, refused = threading.Lock(), Counter[str]()

    def script(request: Any, _: int) -> Any:
        with lock:
            refused[request.request_id] += 1
            again = refused[request.request_id] < 3
        if again:
            stage.refuse(grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", retry_after=0.01)
        return stage.signed(request, {})

    results = together(stage, script, numbered(20))
    assert results == [b"sig:" + payload for payload in numbered(20)]
    contents: dict[str, set[tuple[bytes, ...]]] = {}
    for request in stage.played.requests:
        contents.setdefault(request.request_id, set()).add(tuple(request.payloads))
    assert all(len(each) == 1 for each in contents.values())
    assert set(refused.values()) == {3}


def test_items_dropped_by_the_hsm_go_again_under_another_id(stage: Any, together: Together) -> None:
    lost = stage.status(grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE", retry_after=0.01)
    lock, seen = threading.Lock(), Counter[bytes]()

    def script(request: Any, _: int) -> Any:
        with lock:
            failures = {
                i: lost
                for i, each in enumerate(request.payloads)
                if int(each) % 3 == 0 and not seen[each]
            }
            seen.update(request.payloads)
        return stage.signed(request, failures)

    results = together(stage, script, numbered(30))
    assert results == [b"sig:" + payload for payload in numbered(30)]
    assert seen == Counter({p: 2 if int(p) % 3 == 0 else 1 for p in numbered(30)})


def test_a_callers_time_is_its_own(stage: Any, together: Together) -> None:
    """The call goes on for the others."""
    held = threading.Event()

    def script(request: Any, _: int) -> Any:
        assert held.wait(20)
        return stage.signed(request, {})

    threading.Timer(1.0, held.set).start()
    results = together(stage, script, numbered(10), [0.2 if n % 2 else 20 for n in range(10)])
    assert all(isinstance(error, DeadlineError) for error in results[1::2])
    assert results[::2] == [b"sig:" + payload for payload in numbered(10)[::2]]


def test_a_client_that_is_closed_ends_all_that_wait(stage: Any) -> None:
    at_work, over = threading.Event(), threading.Event()
    errors: list[Any] = []

    def script(request: Any, _: int) -> Any:
        at_work.set()
        assert over.wait(20)
        return stage.signed(request, {})

    def call(client: SignerClient, payload: bytes) -> None:
        try:
            client.sign_one(KEY, "JWS", payload)
        except SignerClientError as error:
            errors.append(error)

    with stage.client(script) as client:
        threads = [threading.Thread(target=call, args=(client, p)) for p in numbered(8)]
        for thread in threads:
            thread.start()
        assert at_work.wait(20)
        client.close()
        for thread in threads:
            thread.join(20)
        call(client, b"later")
        over.set()
    assert len(errors) == 9
    assert all(isinstance(e, UnavailableError) and e.reason == "CLOSED" for e in errors)


def test_a_client_of_a_loop_that_is_closed_ends_all_that_wait(stage: Any) -> None:
    over = threading.Event()

    def script(request: Any, _: int) -> Any:
        assert over.wait(20)
        return stage.signed(request, {})

    async def work(client: AsyncSignerClient) -> list[Any]:
        tasks = [asyncio.create_task(client.sign_one(KEY, "JWS", p)) for p in numbered(8)]
        asking = asyncio.create_task(client.sign_batch(KEY, "JWS", [b"x"]))
        await stage.until(lambda: stage.played.requests)
        await client.close()
        errors = await asyncio.gather(*tasks, asking, return_exceptions=True)
        over.set()
        with pytest.raises(UnavailableError, match="CLOSED"):
            await client.sign_one(KEY, "JWS", b"x")
        with pytest.raises(UnavailableError, match="CLOSED"):
            await client.get_key(KEY)
        return list(errors)

    errors = stage.run(work, script)
    assert len(errors) == 9
    assert all(isinstance(e, UnavailableError) and e.reason == "CLOSED" for e in errors)


def test_a_cancelled_task_takes_its_item_along(stage: Any) -> None:
    held = threading.Event()

    def script(request: Any, _: int) -> Any:
        assert held.wait(20)
        return stage.signed(request, {})

    async def work(client: AsyncSignerClient) -> list[Any]:
        tasks = [asyncio.create_task(client.sign_one(KEY, "JWS", p)) for p in numbered(10)]
        await stage.until(lambda: len(stage.played.requests) >= 2)
        for task in tasks[5:]:
            task.cancel()
        await asyncio.sleep(0)
        held.set()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    results = stage.run(work, script)
    assert results[:5] == [b"sig:" + payload for payload in numbered(5)]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[5:])
    assert payloads_of(stage) == Counter(numbered(5))


def test_a_call_that_all_its_tasks_have_left_is_given_up(stage: Any) -> None:
    held = threading.Event()

    def script(request: Any, number: int) -> Any:
        if not number:
            held.wait(20)
        return stage.signed(request, {})

    async def work(client: AsyncSignerClient) -> bytes:
        lone = asyncio.create_task(client.sign_one(KEY, "JWS", b"lone"))
        await stage.until(lambda: stage.played.requests)
        lone.cancel()
        try:
            return await client.sign_one(KEY, "JWS", b"next")
        finally:
            held.set()

    assert stage.run(work, script) == b"sig:next"


@pytest.mark.parametrize("wrong", ["text", 5, [1, 2]])
def test_no_payload_but_bytes(stage: Any, wrong: Any) -> None:
    with stage.client() as client, pytest.raises(TypeError):
        client.sign_one(KEY, "JWS", wrong)
    with stage.client() as client, pytest.raises(ValueError, match="PDF"):
        client.sign_one(KEY, "PDF", b"x")
