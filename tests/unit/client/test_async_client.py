"""``AsyncSignerClient`` makes the calls of ``SignerClient``."""

import asyncio
import inspect
import itertools
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest

from signer.client import (
    AsyncOperations,
    AsyncSignerClient,
    AsyncSignerStream,
    DeniedError,
    ExhaustedError,
    NotFoundError,
    Operations,
    SignerClient,
    SignerStream,
    UnavailableError,
)
from signer.v1 import operations_pb2

KEY = "facilities/f/keys/k"

CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("get_key", (KEY,)),
    ("list_keys", ("facilities/f",)),
    ("get_key_version", (f"{KEY}/versions/3",)),
    ("list_key_versions", ()),
    ("list_wrapping_keys", ()),
    ("get_checkpoint", ()),
    ("list_records", (3,)),
    ("inclusion_proof", (1, 2)),
    ("consistency_proof", (3, 4)),
    ("reload", ()),
    ("status", (3,)),
    ("health", ()),
    ("sign_batch", (KEY, "JWS", [b"1", b"2"])),
    ("sign", (KEY, "JWS", [b"1", b"2"])),
    ("sign_one", (KEY, "JWS", b"1")),
]


def members(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("blocking", "awaited"),
    [
        (SignerClient, AsyncSignerClient),
        (Operations, AsyncOperations),
        (SignerStream, AsyncSignerStream),
    ],
)
def test_both_have_the_same_methods_with_the_same_arguments(blocking: type, awaited: type) -> None:
    ours, theirs = members(blocking), members(awaited)
    assert set(ours) == set(theirs)
    for name, method in ours.items():
        one, other = inspect.signature(method), inspect.signature(theirs[name])
        assert list(one.parameters.values())[1:] == list(other.parameters.values())[1:], name
        assert method.__doc__, name
        assert theirs[name].__doc__, name


async def gathered(call: Any) -> Any:
    if isinstance(call, AsyncIterator):
        return [each async for each in call]
    return await call


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_both_return_the_same(stage: Any, name: str, arguments: tuple[Any, ...]) -> None:
    stage.played.note = lambda _: "note"
    with stage.client() as client:
        found = getattr(client, name)(*arguments)
        found = list(found) if isinstance(found, Iterator) else found
    assert stage.run(lambda client: gathered(getattr(client, name)(*arguments))) == found
    assert found


def test_every_call_is_in_the_list() -> None:
    assert {name for name, _ in CALLS} == set(members(SignerClient)) - {
        "close",
        "from_files",
        "stream",
    }


def test_failures_are_raised(stage: Any) -> None:
    script = stage.refusing(
        grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", metadata={"rule": "r"}
    )

    async def work(client: AsyncSignerClient) -> DeniedError:
        with pytest.raises(NotFoundError):
            await client.get_key("facilities/f/keys/other")
        with pytest.raises(DeniedError) as caught:
            await client.sign_batch(KEY, "JWS", [b"1"])
        return caught.value

    error = stage.run(work, script)
    assert (error.reason, error.metadata) == ("POLICY_DENIED", {"rule": "r"})


def test_questions_of_auditors_are_asked_again(stage: Any) -> None:
    def busy(number: int) -> str:
        if number < 2:
            stage.refuse(grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", retry_after=0.01)
        return f"note {number}"

    stage.played.note = busy
    assert stage.run(lambda client: client.get_checkpoint()) == "note 2"


# --- sign -----------------------------------------------------------------------------------------


async def signed(client: AsyncSignerClient, *arguments: Any, **options: Any) -> list[Any]:
    return [result async for result in client.sign(KEY, "JWS", *arguments, **options)]


def payloads(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def test_many_batches_come_back_in_order(stage: Any) -> None:
    results = stage.run(lambda client: signed(client, payloads(303), batch_items=10))
    assert [result.index for result in results] == list(range(303))
    assert [result.signature for result in results] == [b"sig:" + p for p in payloads(303)]
    assert len(stage.played.requests) == 31
    assert stage.played.most_at_work <= 4


def test_a_refused_call_is_repeated_with_its_id(stage: Any) -> None:
    def script(request: Any, number: int) -> Any:
        if number < 2:
            stage.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.01)
        return stage.signed(request, {})

    results = stage.run(lambda client: signed(client, payloads(3)), script)
    assert all(result.ok for result in results)
    assert len(stage.played.requests) == 3
    assert len({request.request_id for request in stage.played.requests}) == 1


def test_a_job_repeated_with_its_id_repeats_its_calls(stage: Any) -> None:
    job = uuid.uuid4()

    async def work(client: AsyncSignerClient) -> None:
        for _ in range(2):
            await signed(client, payloads(6), batch_items=2, request_id=job)

    stage.run(work)
    ids = [(request.request_id, tuple(request.payloads)) for request in stage.played.requests]
    assert sorted(ids[:3]) == sorted(ids[3:])


def test_results_before_a_refusal_are_yielded(stage: Any) -> None:
    script = stage.refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", retry_after=3600)

    async def work(client: AsyncSignerClient) -> list[Any]:
        results: list[Any] = []
        with suppress(ExhaustedError):
            async for result in client.sign(KEY, "JWS", payloads(3)):
                results.append(result)  # noqa: PERF401  one by one: it ends with an error
            results.append("no error")
        return results

    results = stage.run(work, script)
    assert [result.error.reason for result in results] == ["QUOTA_EXCEEDED"] * 3


def test_an_endless_source_is_read_as_it_is_needed(stage: Any) -> None:
    source = itertools.count()
    endless = (b"%d" % number for number in source)

    async def work(client: AsyncSignerClient) -> list[int]:
        results = client.sign(KEY, "JWS", endless, batch_items=5, in_flight=2)
        read = [(await anext(results)).index for _ in range(7)]
        await results.aclose()  # type: ignore[attr-defined]  # an async generator
        return read

    assert stage.run(work) == list(range(7))
    assert next(source) < 7 + 5 * 4


def test_nobody_listens(stage: Any) -> None:
    async def work() -> None:
        async with AsyncSignerClient.from_files(
            "127.0.0.1:1", **stage.files, server_name="x"
        ) as client:
            await client.get_key(KEY, timeout=5)

    with pytest.raises(UnavailableError):
        asyncio.run(work())


# --- operations -----------------------------------------------------------------------------------


def test_officers_wait_and_import(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signer.client._operations._POLL_SECONDS", 0.001)
    waiting = operations_pb2.Operation(id="7", state=operations_pb2.OPERATION_STATE_WAITING)
    done = operations_pb2.Operation(id="7", state=operations_pb2.OPERATION_STATE_DONE)
    states = [operations_pb2.Operation(id="7"), waiting]
    stage.operations.answers["GetOperation"] = lambda _: operations_pb2.GetOperationResponse(
        operation=states.pop(0)
    )
    stage.operations.answers["ImportCertificates"] = lambda _: (
        operations_pb2.ImportCertificatesResponse(operation=done)
    )
    stage.operations.answers["ListOperations"] = lambda _: operations_pb2.ListOperationsResponse(
        operations=[done]
    )
    taken: list[int] = []

    async def work(client: AsyncSignerClient) -> list[str]:
        waits = await client.operations.wait("7", 20)
        over = await client.operations.import_certificates("7", [b"a", b"b"], taken.append)
        listed = [each async for each in client.operations.list("DONE")]
        return [waits.state, over.state, *(each.state for each in listed)]

    assert stage.run(work) == ["WAITING", "DONE", "DONE"]
    assert taken == [2]
