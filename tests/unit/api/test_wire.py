from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.api import wire
from signer.errors import CallError, Code, Extent, Failure, Reason, Violation
from signer.model import Format, KeyState
from signer.v1 import keys_pb2, signing_pb2
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
