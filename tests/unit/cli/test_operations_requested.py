"""The bytes that an officer gets to sign are as requested, or nothing is signed."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from signer.cli.keys.rotating import rotation
from signer.cli.operations.arguments import parse_duration, parse_time
from signer.cli.operations.requested import (
    FILLED,
    OperationRequest,
    check_content,
    check_foreign,
    der64,
    officers_request,
    pem,
    request,
    request_with_certificates,
)
from signer.errors import OperatorError
from signer.officers.approval import Proposal
from signer.officers.execution import KINDS
from tests.unit.cli.operations_played import NOW, A, B, certify, der

KEY = "facilities/f/keys/k"
VERSION = f"{KEY}/versions/1"
ONE = certify(ec.generate_private_key(ec.SECP256R1()), "CN=one,C=VN")
TWO = certify(ec.generate_private_key(ec.SECP256R1()), "CN=two,C=VN")

ASKED = [
    request(
        "create-key",
        {
            "key": KEY,
            "algorithm": "PS256",
            "bits": 3072,
            "token": "t",
            "activate": True,
            "sign_until": 7,
            "subject": "CN=x",
        },
    ),
    request("create-wrapping-key", {"token": "t"}),
    request("destroy-wrapping-key", {"wrapping_key": "w"}),
    request("place-wrapping-key", {"wrapping_key": "w", "token": "u"}),
    request("rewrap", {"from_key": "w", "to_key": "", "token": "t"}),
    request("new-version", {"key": KEY, "token": "", "subject": "CN=x"}),
    request_with_certificates(
        "import-certificate", {"version": VERSION, "replace": False}, certificate=ONE, issuers=[TWO]
    ),
    request("activate", {"version": VERSION, "at": 7, "sign_until": 0}),
    request("clock", {"wrong_from": 7}),
    request("resume", {"target": "groups/g"}),
    request("deactivate", {"version": VERSION, "at": 0}),
    request("schedule-destruction", {"version": VERSION, "at": 7}),
    request("destroy", {"version": VERSION}),
    request("restore", {"version": VERSION}),
    request("add-placement", {"version": VERSION, "token": "u", "cka_id": "ab"}),
    request("remove-placement", {"version": VERSION, "token": "u"}),
    request("policy", {"policy_sha256": "ab"}),
    request("enrol", {"token": ""}, b"csv", csv_sha256=hashlib.sha256(b"csv").hexdigest()),
    officers_request({A: der(ONE), B: der(TWO)}, {B: ONE}, []),
    rotation(
        {
            "activate_at": 7,
            "overlap_seconds": 8,
            "sign_for_seconds": 9,
            "destroy_after_seconds": 10,
            "subject": "CN={key}",
            "token": "t",
        },
        [ONE],
        [KEY],
        [],
    ),
]
KIND_IDS = [asked.kind for asked in ASKED]


def content(asked: OperationRequest, **changed: Any) -> bytes:
    filled = dict.fromkeys(FILLED[asked.kind], "x")
    members: dict[str, Any] = {
        "origin": "log",
        "id": "6f2f1d5e-6b39-4bd2-b1b4-9a1f0c5b4f00",
        "kind": asked.kind,
        "proposer": A,
        "proposed_at": NOW,
        "expires_at": NOW + 60,
        "officers": 2,
        "details": {**filled, **asked.expected},
    }
    return Proposal(**(members | changed)).canonical()


def refusal(check: Callable[[], object]) -> str:
    with pytest.raises(OperatorError) as error:
        check()
    assert "nothing was signed" in str(error.value)
    return str(error.value)


def test_every_kind_is_tried() -> None:
    assert set(KIND_IDS) == set(KINDS) == set(FILLED)


@pytest.mark.parametrize("asked", ASKED, ids=KIND_IDS)
def test_what_is_sent_and_expected_fits_the_appliance(asked: OperationRequest) -> None:
    members = KINDS[asked.kind].details.model_fields
    assert {*asked.expected, *FILLED[asked.kind]} == set(members)
    KINDS[asked.kind].read(asked.arguments)
    KINDS[asked.kind].read(asked.expected)


@pytest.mark.parametrize("asked", ASKED, ids=KIND_IDS)
def test_the_bytes_asked_for_are_accepted(asked: OperationRequest) -> None:
    assert check_content(content(asked), asked, A).kind == asked.kind


def others(value: Any) -> list[Any]:
    """Values that are not this one, some nearly so."""
    match value:
        case bool():
            return [not value, int(value), None]
        case int():
            return [value + 1, str(value), value > 0, None]
        case str():
            return [f"{value} ", None]
        case list():
            return [[*value, "x"], value[1:] if value else {}, None]
        case _:
            return [{**value, "spiffe://other": "x"}, dict(list(value.items())[1:]), None]


@pytest.mark.parametrize(
    ("asked", "name"),
    [(asked, name) for asked in ASKED for name in asked.expected],
    ids=[f"{asked.kind}-{name}" for asked in ASKED for name in asked.expected],
)
def test_another_value_is_refused(asked: OperationRequest, name: str) -> None:
    def told(details: Mapping[str, Any]) -> str:
        return refusal(lambda: check_content(content(asked, details=details), asked, A))

    for other in others(asked.expected[name]):
        assert f"{name} is " in told({**asked.expected, name: other})
    missing = {key: kept for key, kept in asked.expected.items() if key != name}
    assert f"{name} is missing" in told(missing)


@pytest.mark.parametrize("asked", ASKED, ids=KIND_IDS)
def test_other_operations_are_refused(asked: OperationRequest) -> None:
    def told(data: bytes) -> str:
        return refusal(lambda: check_content(data, asked, A))

    assert "its proposer is" in told(content(asked, proposer=B))
    assert "its kind is other" in told(content(asked, kind="other"))
    more = {**asked.expected, "more": 1}
    assert "more was not requested" in told(content(asked, details=more))
    assert "canonical" in told(content(asked).replace(b"  ", b"   ", 1))
    assert "not an operation" in told(content(asked).replace(b"approval", b"payment"))


def test_what_the_appliance_fills_is_its_own_only_where_nothing_was_said() -> None:
    free = request("new-version", {"key": KEY, "token": "", "subject": ""})
    said = request("new-version", {"key": KEY, "token": "t", "subject": ""})
    other = {"key": KEY, "token": "u", "subject": ""}
    check_content(content(free, details=other), free, A)
    assert "token is " in refusal(lambda: check_content(content(said, details=other), said, A))


def test_certificates_are_sent_as_text_and_expected_as_they_are_kept() -> None:
    asked = request_with_certificates("import-certificate", {}, certificate=ONE, issuers=[TWO, ONE])
    assert asked.arguments == {"certificate": pem(ONE), "issuers": [pem(TWO), pem(ONE)]}
    assert asked.expected == {"certificate": der64(ONE), "issuers": [der64(TWO), der64(ONE)]}
    assert x509.load_pem_x509_certificate(pem(ONE).encode()) == ONE


def test_officers_are_worked_out_here() -> None:
    asked = officers_request({A: der(ONE), B: der(TWO)}, {A: TWO}, [B])
    assert asked.arguments == {"add": [pem(TWO)], "remove": [B]}
    assert asked.expected == {"add": [], "remove": [], "officers": {A: der64(TWO)}}


def test_what_another_officer_proposed_is_checked_before_it_is_approved() -> None:
    data = content(ASKED[0])
    identity = "6f2f1d5e-6b39-4bd2-b1b4-9a1f0c5b4f00"
    assert check_foreign(data, identity, B).proposer == A
    with pytest.raises(OperatorError, match="you proposed this"):
        check_foreign(data, identity, A)
    assert identity in refusal(lambda: check_foreign(data, identity.replace("6f", "7f"), B))
    assert "not an operation" in refusal(lambda: check_foreign(data[1:], identity, B))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("+7d", 1_000 + 7 * 86_400),
        ("+12h", 1_000 + 12 * 3_600),
        ("+0s", 1_000),
        ("+2w", 1_000 + 14 * 86_400),
        ("+6minutes", 1_360),
        ("+1minute", 1_060),
        ("+6months", 181 * 86_400 + 1_000),
        ("+1month", 31 * 86_400 + 1_000),
        ("+1year", 365 * 86_400 + 1_000),
        ("1970-01-02T00:00:00Z", 86_400),
        ("1970-01-02T07:00:00+07:00", 86_400),
        ("1970-01-02T00:00:00.9Z", 86_400),
    ],
)
def test_times(text: str, seconds: int) -> None:
    assert parse_time(text, 1_000.7) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "+",
        "+7",
        "7d",
        "+-7d",
        "+7y",
        "+7ss",
        "2030-01-01T00:00:00",
        "1969-01-01T00:00:00Z",
    ],
)
def test_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse_time(text, 1_000)


def test_a_month_is_one_of_the_calendar() -> None:
    for now, text, then in (
        ("2028-01-31T10:00:00Z", "+1month", "2028-02-29T10:00:00Z"),
        ("2027-08-31T10:00:00Z", "+6months", "2028-02-29T10:00:00Z"),
        ("2028-02-29T10:00:00Z", "+1year", "2029-02-28T10:00:00Z"),
        ("2027-12-15T10:00:00Z", "+1month", "2028-01-15T10:00:00Z"),
    ):
        begun, wanted = (datetime.fromisoformat(each).timestamp() for each in (now, then))
        assert parse_time(text, begun) == wanted
    with pytest.raises(ValueError, match="after the year 9999"):
        parse_time("+99999months", 1_000)


def test_m_is_refused_because_it_could_be_minutes_or_months() -> None:
    for read in (parse_duration, lambda text: parse_time(f"+{text}", 1_000)):
        with pytest.raises(ValueError, match="write 6minutes or 6months"):
            read("6m")


def test_durations() -> None:
    seconds = [parse_duration(text) for text in ("7d", "12h", "30minutes", "45s", "0s", "1week")]
    assert seconds == [604_800, 43_200, 1_800, 45, 0, 604_800]
    with pytest.raises(ValueError, match="give days"):
        parse_duration("6months")
    for wrong in ("", "7", "d", "-7d", "1.5d", "7 d", "1234567d"):
        with pytest.raises(ValueError, match="as in 7d"):
            parse_duration(wrong)
