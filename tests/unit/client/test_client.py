import importlib
import itertools
import threading
import uuid
from collections.abc import Iterable
from typing import Any

import grpc
import pytest

from signer.client import (
    DeniedError,
    ExhaustedError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    SignerClientError,
    UnavailableError,
)
from signer.client._errors import ERRORS
from signer.errors import Code, Reason, Violation

KEY = "facilities/f/keys/k"
CODES = {code.value[0]: code for code in grpc.StatusCode}


def payloads(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


def collect(stream: Iterable[Any], results: list[Any]) -> None:
    for result in stream:
        results.append(result)  # noqa: PERF402  one by one: the stream ends with an error


def test_many_batches_come_back_in_order(stage: Any) -> None:
    with stage.client() as client:
        results = list(client.sign(KEY, "MESSAGE", payloads(1_003), batch_items=10))
    assert [r.index for r in results] == list(range(1_003))
    assert [r.signature for r in results] == [b"sig:" + p for p in payloads(1_003)]
    assert all(r.ok and r.key_version == f"{KEY}/versions/1" for r in results)
    assert len(stage.played.requests) == 101
    assert len({r.request_id for r in stage.played.requests}) == 101


@pytest.mark.parametrize(("allowed", "expected"), [(7, 7), (4096, 500), (0, 500)])
def test_batches_follow_the_policy_of_the_key(stage: Any, allowed: int, expected: int) -> None:
    stage.played.max_batch_items = allowed
    with stage.client() as client:
        list(client.sign(f"{KEY}/versions/1", "MESSAGE", payloads(501)))
    assert max(len(r.payloads) for r in stage.played.requests) == expected


@pytest.mark.parametrize(
    ("quota", "sizes"), [(10, [10, 10, 3]), (23, [23]), (499, [23]), (5000, [23])]
)
def test_batches_are_no_larger_than_a_quota(stage: Any, quota: int, sizes: list[int]) -> None:
    stage.played.quota = quota
    with stage.client() as client:
        results = list(client.sign(KEY, "MESSAGE", payloads(23)))
        [one] = client.sign(KEY, "MESSAGE", [b"x"])
    assert all(result.ok for result in [*results, one])
    assert [len(r.payloads) for r in stage.played.requests] == [*sizes, 1]


def test_calls_as_large_as_a_quota_follow_each_other(stage: Any) -> None:
    """Else the last, smaller one would take what an earlier one needs."""
    stage.played.quota = 10
    with stage.client() as client:
        list(client.sign(KEY, "MESSAGE", payloads(95)))
    assert stage.played.most_at_work == 1


def test_no_more_calls_at_once_than_in_flight(stage: Any) -> None:
    together = threading.Barrier(3)

    def script(request: Any, number: int) -> Any:
        if number < 3:  # passes only if three calls are at work together
            together.wait(timeout=20)
        return stage.signed(request, {})

    with stage.client(script) as client:
        list(client.sign(KEY, "JWS", payloads(40), batch_items=2, in_flight=3))
    assert stage.played.most_at_work == 3


def test_an_endless_source_is_read_as_it_is_needed(stage: Any) -> None:
    source = itertools.count()
    endless = (str(n).encode() for n in source)
    with stage.client() as client:
        results = client.sign(KEY, "JWS", endless, batch_items=5, in_flight=2)
        assert [next(results).index for _ in range(7)] == list(range(7))
        results.close()
    assert next(source) < 7 + 5 * 4


def test_failed_items_fail_alone(stage: Any) -> None:
    bad = stage.status(grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_INVALID", message="not JSON")
    with stage.client(lambda request, _: stage.signed(request, {1: bad})) as client:
        first, second, third = client.sign(KEY, "JWS", payloads(3))
    assert (first.ok, second.ok, third.ok) == (True, False, True)
    assert second.signature == b""
    assert second.error is not None
    assert second.error.reason == Reason.PAYLOAD_INVALID
    assert second.error.message == "not JSON"
    assert not second.error.retryable
    assert len(stage.played.requests) == 1


def test_a_payload_too_large_for_a_call_fails_alone(stage: Any) -> None:
    with stage.client() as client:
        results = list(client.sign(KEY, "MESSAGE", [b"a", bytes(5_000_000), b"b"]))
    assert [r.ok for r in results] == [True, False, True]
    assert results[1].error is not None
    assert results[1].error.reason == Reason.PAYLOAD_INVALID


def test_items_lost_by_the_hsm_are_sent_again_alone(stage: Any) -> None:
    lost = stage.status(grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE", retry_after=0.01)
    bad = stage.status(grpc.StatusCode.INVALID_ARGUMENT, "PAYLOAD_INVALID")

    def script(request: Any, number: int) -> Any:
        return stage.signed(request, {0: bad, 1: lost, 3: lost} if number == 0 else {})

    with stage.client(script) as client:
        results = list(client.sign(KEY, "JWS", payloads(5)))
    assert [r.signature for r in results] == [b"", b"sig:1", b"sig:2", b"sig:3", b"sig:4"]
    first, again = stage.played.requests
    assert list(again.payloads) == [b"1", b"3"]
    assert first.request_id != again.request_id  # other content is another call


def test_results_name_the_record_of_their_batch(stage: Any) -> None:
    lost = stage.status(grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE", retry_after=0.01)

    def script(request: Any, number: int) -> Any:
        answer = stage.signed(request, {1: lost} if number == 0 else {})
        answer.audit_record = 10 * number
        return answer

    with stage.client(script) as client:
        results = list(client.sign(KEY, "JWS", payloads(3)))
        [alone] = client.sign_batch(KEY, "JWS", payloads(1))
    assert [result.audit_record for result in results] == [0, 10, 0]
    assert alone.audit_record == 20
    with stage.client(lambda request, _: stage.signed(request, {})) as client:
        [without] = client.sign_batch(KEY, "JWS", payloads(1))  # of an older appliance
    assert without.audit_record is None


def test_items_that_stay_lost_end_with_their_error(stage: Any) -> None:
    lost = stage.status(grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE", retry_after=60)
    with stage.client(lambda request, _: stage.signed(request, {0: lost})) as client:
        first, second = client.sign(KEY, "JWS", payloads(2), timeout=5)
    assert first.error is not None
    assert first.error.reason == Reason.HSM_UNAVAILABLE
    assert first.error.retry_after == 60
    assert second.ok
    assert len(stage.played.requests) == 1  # the hint is past the deadline: no second try


def test_a_refused_call_is_repeated_with_its_id(stage: Any) -> None:
    def script(request: Any, number: int) -> Any:
        if number < 2:
            stage.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", retry_after=0.01)
        return stage.signed(request, {})

    with stage.client(script) as client:
        results = list(client.sign(KEY, "JWS", payloads(3)))
    assert all(r.ok for r in results)
    assert len(stage.played.requests) == 3
    assert len({r.request_id for r in stage.played.requests}) == 1


def test_a_quota_that_opens_too_late_is_an_error_now(stage: Any) -> None:
    script = stage.refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", retry_after=3600)
    with stage.client(script) as client, pytest.raises(ExhaustedError) as caught:
        list(client.sign(KEY, "JWS", payloads(3)))
    assert caught.value.reason == Reason.QUOTA_EXCEEDED
    assert caught.value.retry_after == 3600
    assert caught.value.retryable
    assert len(stage.played.requests) == 1


def test_results_before_and_behind_a_refused_call_are_yielded(stage: Any) -> None:
    def script(request: Any, _: int) -> Any:
        if b"4" in request.payloads:
            stage.refuse(
                grpc.StatusCode.PERMISSION_DENIED, "POLICY_DENIED", metadata={"rule": "clinic.x"}
            )
        return stage.signed(request, {})

    results: list[Any] = []
    with stage.client(script) as client:
        stream = client.sign(KEY, "JWS", payloads(100), batch_items=2, in_flight=2)
        with pytest.raises(DeniedError) as caught:
            collect(stream, results)
    assert caught.value.metadata == {"rule": "clinic.x"}
    assert not caught.value.retryable
    sent = sum(len(r.payloads) for r in stage.played.requests)
    assert [r.index for r in results] == list(range(sent))
    assert [r.index for r in results if not r.ok] == [4, 5]
    assert sent < 100


def test_a_job_repeated_with_its_id_repeats_its_calls(stage: Any) -> None:
    job = uuid.uuid4()
    with stage.client() as client:
        for _ in range(2):
            list(client.sign(KEY, "JWS", payloads(6), batch_items=2, request_id=job))
    ids = [(r.request_id, tuple(r.payloads)) for r in stage.played.requests]
    assert sorted(ids[:3]) == sorted(ids[3:])
    assert all(str(uuid.UUID(name)) == name for name, _ in ids)


def test_a_server_that_comes_back_is_found_again(stage: Any) -> None:
    def script(request: Any, number: int) -> Any:
        if number == 0:
            stage.refuse(grpc.StatusCode.UNAVAILABLE, "", domain="elsewhere")
        return stage.signed(request, {})

    with stage.client(script) as client:
        assert [r.ok for r in client.sign(KEY, "JWS", payloads(2), batch_items=2)] == [True, True]


def test_a_short_answer_is_an_error(stage: Any) -> None:
    def script(request: Any, _: int) -> Any:
        answer = stage.signed(request, {})
        del answer.signatures[0]
        return answer

    with stage.client(script) as client, pytest.raises(InternalError, match="got 2"):
        list(client.sign(KEY, "JWS", payloads(3)))


def test_one_call_is_one_call(stage: Any) -> None:
    request_id = uuid.uuid4()
    with stage.client() as client:
        first, second = client.sign_batch(KEY, "HCERT", payloads(2), request_id=request_id)
    assert (first.index, second.index) == (0, 1)
    assert second.signature == b"sig:1"
    assert [r.request_id for r in stage.played.requests] == [str(request_id)]


def test_field_violations_are_told(stage: Any) -> None:
    script = stage.refusing(
        grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", violations=(("key", "too long"),)
    )

    with stage.client(script) as client, pytest.raises(InvalidRequestError) as caught:
        client.sign_batch(KEY, "JWS", payloads(1))
    assert caught.value.violations == (Violation("key", "too long"),)
    assert str(caught.value) == "FIELD_INVALID: what to do"


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_reaches_the_caller(stage: Any, reason: Reason) -> None:
    script = stage.refusing(CODES[reason.code], reason.value)
    with stage.client(script) as client, pytest.raises(ERRORS[reason.code]) as caught:
        client.sign_batch(KEY, "JWS", payloads(1))
    assert caught.value.reason == reason
    assert caught.value.code == reason.code.name
    assert caught.value.retryable is reason.retryable


def test_every_code_has_its_own_class() -> None:
    assert set(ERRORS) == set(Code)
    assert len(set(ERRORS.values())) == len(Code)


def test_a_stranger_to_the_tree_keeps_its_code(stage: Any) -> None:
    script = stage.refusing(grpc.StatusCode.DATA_LOSS, "OTHER", domain="proxy.example")
    with stage.client(script) as client, pytest.raises(SignerClientError) as caught:
        client.sign_batch(KEY, "JWS", payloads(1))
    assert type(caught.value) is SignerClientError
    assert (caught.value.code, caught.value.reason) == ("DATA_LOSS", "DATA_LOSS")


def test_the_keys_are_read(stage: Any) -> None:
    with stage.client() as client:
        key = client.get_key(KEY)
        names = [k.name for k in client.list_keys("facilities/f")]
        version = client.get_key_version(f"{KEY}/versions/3")
        with pytest.raises(NotFoundError):
            client.get_key("facilities/f/keys/other")
    assert key.algorithm == "EdDSA"
    assert key.formats == ("JWS", "COSE_SIGN1")
    assert key.quotas[0].remaining == 4
    assert key.primary is not None
    assert key.primary.state == "ACTIVE"
    assert key.primary.certificate is None
    assert key.primary.created is not None
    assert key.primary.created.timestamp() == 1_700_000_000
    assert key.primary.sign_until is None
    assert len(names) == len(set(names)) == 6
    assert (version.name, version.certificate) == (f"{KEY}/versions/3", b"der")


def test_operators_look_and_reload(stage: Any) -> None:
    with stage.client() as client:
        assert client.reload().policy_changed
        status = client.status(busiest=3)
        assert client.health() == "NOT_SERVING"
    assert status.ready
    assert status.workers[0].pid == 7
    assert status.busiest[0].items == 3


def test_nobody_listens(stage: Any) -> None:
    with stage.connect("127.0.0.1:1") as client, pytest.raises(UnavailableError) as caught:
        client.sign(KEY, "JWS", payloads(1), timeout=5)
    assert caught.value.reason == "UNAVAILABLE"
    assert caught.value.retryable


@pytest.mark.parametrize("traced", [False, True])
def test_a_closed_client_says_so(stage: Any, traced: bool) -> None:
    if traced:
        importlib.import_module("opentelemetry.trace")
    with stage.client() as client:
        client.close()
        with pytest.raises(UnavailableError, match="CLOSED") as caught:
            client.get_key(KEY)
    assert not caught.value.retryable


@pytest.mark.parametrize("wrong", [{"in_flight": 0}, {"batch_items": 0}])
def test_numbers_below_one_are_refused(stage: Any, wrong: dict[str, int]) -> None:
    with stage.client() as client, pytest.raises(ValueError, match="at least 1"):
        client.sign(KEY, "JWS", payloads(1), **wrong)


def test_an_unknown_format_is_refused(stage: Any) -> None:
    told = "'PDF' is not a format; the formats are DIGEST, MESSAGE, JWS, "
    with stage.client() as client, pytest.raises(ValueError, match=told):
        client.sign(KEY, "PDF", payloads(1))


def test_a_wrong_server_name_does_not_connect(stage: Any) -> None:
    with stage.client():
        wrong = stage.connect(stage.address, "impostor")
        with wrong, pytest.raises(UnavailableError):
            wrong.health(timeout=5)


# --- the log ------------------------------------------------------------------------------------


def test_questions_of_auditors_are_asked_again_when_the_appliance_says_so(stage: Any) -> None:
    def busy(number: int) -> str:
        if number < 2:
            stage.refuse(grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", retry_after=0.01)
        return f"note {number}"

    stage.played.note = busy
    with stage.client() as client:
        assert client.get_checkpoint() == "note 2"


def test_a_hint_beyond_the_time_ends_the_question(stage: Any) -> None:
    stage.played.note = stage.refusing(
        grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", retry_after=60
    )
    with stage.client() as client, pytest.raises(UnavailableError) as caught:
        client.get_checkpoint(timeout=5)
    assert caught.value.reason == "AUDIT_UNAVAILABLE"
    assert stage.played.asked == 1


def test_records_come_from_all_pages_as_they_were_asked_for(stage: Any) -> None:
    with stage.client() as client:
        records = list(client.list_records(3, kinds=iter(["stop"]), omit_items=True))
    assert [(record.seq, record.kind, record.items) for record in records] == [
        (3, "stop", b""),
        (4, "stop", b""),
        (5, "stop", b""),
    ]
    assert [record.time.isoformat() for record in records[:1]] == ["2023-11-14T22:13:20+00:00"]


def test_proofs_are_hashes_in_their_order(stage: Any) -> None:
    with stage.client() as client:
        assert client.inclusion_proof(1, 2) == [b"inclusion", b"1", b"2"]
        assert client.consistency_proof(3, 4) == [b"consistency", b"3", b"4"]
