import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.api import wire
from signer.api.wire import UNCOUNTED_BYTES, read_batch_request, read_stream_request
from signer.errors import CallError, Code, Extent, Failure, Reason, Violation
from signer.format_terms import ContentRules, HcertTerms
from signer.formats import FORMATS
from signer.formats.payloads import ContentTerms, PayloadError
from signer.model import MAX_BATCH_ITEMS, Format, KeyState
from signer.signing.engine import FAILURE_BYTES
from signer.v1 import keys_pb2, signing_pb2
from signer.v1.signing_pb2 import SignBatchRequest, SignStreamRequest
from tests.stand_ins import key_version

VERSION = key_version(
    number=3, algorithm=Algorithm.EDDSA, thumbprint="thumbprint", created=1.5, activate_at=2.25
)


def details(status: status_pb2.Status, kind: type[Message]) -> list[Any]:
    found = []
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            found.append(message)
    return found


def info(status: status_pb2.Status) -> Any:
    [found] = details(status, error_details_pb2.ErrorInfo)
    return found


@pytest.mark.parametrize("reason", [r for r in Reason if Extent.CALL in r.scope])
def test_a_call_has_exactly_one_error_info(reason: Reason) -> None:
    status = wire.call_status(CallError(reason, "what to do", {"rule": "a.b"}))
    assert (status.code, status.message) == (reason.code, "what to do")
    assert len(status.details) == 1
    assert info(status).reason == reason
    assert info(status).domain == "signer.v1"
    assert dict(info(status).metadata) == {"rule": "a.b"}


@pytest.mark.parametrize("reason", [r for r in Reason if Extent.ITEM in r.scope])
def test_an_item_has_exactly_one_error_info(reason: Reason) -> None:
    status = wire.item_status(Failure(reason, "what to do"))
    assert (status.code, status.message) == (reason.code, "what to do")
    assert len(status.details) == 1
    assert (info(status).reason, info(status).domain) == (reason, "signer.v1")


def test_an_item_names_its_rule_and_its_member() -> None:
    rule = wire.item_status(Failure(Reason.CONTENT_DENIED, "x", rule="a.b"))
    member = wire.item_status(Failure(Reason.PAYLOAD_INVALID, "x", member="v.0.dt"))
    assert dict(info(rule).metadata) == {"rule": "a.b"}
    assert dict(info(member).metadata) == {"member": "v.0.dt"}


LONGEST_KEY = "facilities." + "f" * 63 + ".keys." + "k" * 63


@pytest.mark.parametrize("member", ["m", "m" * 5000, "ệ" * 5000, "\U0001d51b" * 5000])
def test_a_failed_item_takes_no_more_than_it_was_counted_with(member: str) -> None:
    rules = {"required_members", "identifier_prefix", "certificate_types", "qr_level"}
    paths = {rule: f"{LONGEST_KEY}.content.{rule}" for rule in rules}
    paths[f"required_members.{member}"] = paths["required_members"]
    denying = ContentRules(
        certificate_types=frozenset("t"),
        required_members=frozenset({member}),
        qr_level="H",
        paths=paths,
    )
    wide = ContentRules(qr_level="H", paths=paths)
    names = {"fnt": "A", "note": "".join(f"{i:08x}" for i in range(1500))}
    certificate = json.dumps({"ver": "", "nam": names, "dob": "", "v": [{}]}).encode()
    cases = [
        (Format.JWS, denying, b"{}"),
        (Format.HCERT, denying, certificate),
        (Format.HCERT, wide, certificate),
        (Format.HCERT, ContentRules(dcc_schema=True), certificate),
    ]
    for message_format, content, payload in cases:
        terms = ContentTerms(content, HcertTerms("VN", 86_400), None, 1_700_000_000)
        with pytest.raises(PayloadError) as caught:
            FORMATS[message_format].inspect(payload, terms)
        response = signing_pb2.SignBatchResponse()
        response.failures[4095].CopyFrom(wire.item_status(caught.value.failure))
        assert len(response.SerializeToString()) <= FAILURE_BYTES


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, 0.001), (0.1, 0.1), (1.5, 1.5), (9e4, 9e4)])
def test_a_hint_is_never_zero(seconds: float, shown: float) -> None:
    for status in (
        wire.call_status(CallError(Reason.OVERLOADED, "x", retry_after=seconds)),
        wire.item_status(Failure(Reason.HSM_UNAVAILABLE, "x", seconds)),
    ):
        [hint] = details(status, error_details_pb2.RetryInfo)
        assert hint.retry_delay.ToMilliseconds() / 1000 == shown
        assert len(status.details) == 2


@given(st.lists(st.builds(Violation, st.text(max_size=1000), st.text(max_size=1000)), max_size=30))
def test_trailers_stay_below_the_clients_limit(violations: list[Violation]) -> None:
    status = wire.call_status(CallError(Reason.FIELD_INVALID, "refused", violations=violations))
    bad = details(status, error_details_pb2.BadRequest)
    shown = [each for part in bad for each in part.field_violations]
    assert len(shown) == min(len(violations), 10)
    assert len(status.SerializeToString()) * 4 / 3 < 8 * 1024
    for each, violation in zip(shown, violations, strict=False):
        for text, whole in (
            (each.field, violation.field),
            (each.description, violation.description),
        ):
            assert text == whole or whole.startswith(text.removesuffix("..."))
            assert len(text.encode()) <= wire.MAX_VIOLATION_BYTES


def test_every_name_of_the_model_is_one_of_the_api() -> None:
    for message_format in Format:
        number = signing_pb2.Format.Value(f"FORMAT_{message_format}")
        assert wire.FORMATS[number] is message_format
    for algorithm in Algorithm:
        shown = wire.key_version(replace(VERSION, algorithm=algorithm), KeyState.ACTIVE).algorithm
        assert keys_pb2.Algorithm.Name(shown) == f"ALGORITHM_{algorithm.upper()}"


@pytest.mark.parametrize("state", KeyState)
def test_a_version_is_shown_in_the_state_in_force(state: KeyState) -> None:
    shown = wire.key_version(VERSION, state)
    assert keys_pb2.KeyState.Name(shown.state) == f"KEY_STATE_{state}"
    assert shown.name == "facilities/f/keys/k/versions/3"
    assert shown.algorithm == keys_pb2.ALGORITHM_EDDSA
    assert (shown.public_key, shown.certificate, shown.kid) == (b"spki", b"", b"kid")
    assert shown.jwk_thumbprint == "thumbprint"
    assert shown.create_time.ToMilliseconds() == 1500
    assert shown.activate_time.ToMilliseconds() == 2250
    assert not shown.HasField("sign_until_time")
    assert wire.key_version(replace(VERSION, certificate=b"der"), state).certificate == b"der"


def test_codes_have_names() -> None:
    for code in Code:
        assert wire.code_name(code) == code_pb2.Code.Name(code) == code.name


# Items are counted in the bytes of a message, before they are kept.


def batch(items: int, payload: bytes = b"") -> SignBatchRequest:
    return SignBatchRequest(
        key="k", format="FORMAT_MESSAGE", payloads=[payload] * items, request_id="r"
    )


@pytest.mark.parametrize("payload", [bytes(100), bytes(300)])
def test_as_many_as_allowed_are_read_and_many_more_are_refused(payload: bytes) -> None:
    allowed, more = batch(MAX_BATCH_ITEMS, payload), batch(MAX_BATCH_ITEMS + 65, payload)
    assert len(allowed.SerializeToString()) > UNCOUNTED_BYTES
    assert read_batch_request(allowed.SerializeToString()) == allowed
    stream = SignStreamRequest(tag=7, batch=allowed)
    stream.timeout.FromSeconds(3)
    assert read_stream_request(stream.SerializeToString()) == stream
    with pytest.raises(CallError) as caught:
        read_batch_request(more.SerializeToString())
    assert caught.value.violations[0].field == "payloads"
    with pytest.raises(CallError):
        read_stream_request(SignStreamRequest(tag=7, batch=more).SerializeToString())


def test_two_million_empty_payloads_are_refused_in_every_form() -> None:
    empty = b"\x1a\x00" * (2 << 20)
    group = b"\x0b" + empty + b"\x0c"
    long_tag = b"\x9a\x80\x00\x00" * (1 << 20)
    for message in (empty, long_tag):
        with pytest.raises(CallError):
            read_batch_request(message)
    for message in (group, b"\xff" * UNCOUNTED_BYTES * 2):
        with pytest.raises(DecodeError):
            read_batch_request(message)


def test_a_payload_full_of_the_tag_is_one_item() -> None:
    asked = batch(1, b"\x1a\x00" * 100_000)
    assert read_batch_request(asked.SerializeToString()) == asked


def test_usual_payloads_are_counted_by_one_look_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done for each of thousands of payloads holds the event loop."""
    others: list[int] = []
    read = wire._field

    def noted(message: bytes, at: int) -> tuple[int, int, int]:
        others.append(at)
        return read(message, at)

    monkeypatch.setattr(wire, "_field", noted)
    asked = SignBatchRequest(key="k", payloads=[bytes(size) for size in range(1, 4001)])
    assert read_batch_request(asked.SerializeToString()) == asked
    assert len(others) < 5
    unusual = batch(9, bytes(1 << 14))  # lengths of three bytes
    assert read_batch_request(unusual.SerializeToString()) == unusual
    assert len(others) >= 9


@given(st.binary(max_size=200), st.integers(0, 60))
def test_other_bytes_are_refused_or_read_as_protobuf_does(noise: bytes, at: int) -> None:
    message = noise[:at] + batch(1, bytes(UNCOUNTED_BYTES)).SerializeToString() + noise[at:]
    try:
        wanted: SignBatchRequest | None = SignBatchRequest.FromString(message)
    except DecodeError:
        wanted = None
    try:
        read = read_batch_request(message)
    except CallError:
        pass  # noise can make more fields of the zeros than any batch has
    except DecodeError:
        # A group is refused, although protobuf skips it.
        assert wanted is None or any(byte & 7 in {3, 4} for byte in noise)
    else:
        assert read == wanted
