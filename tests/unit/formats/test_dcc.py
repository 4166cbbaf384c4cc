import json
import unicodedata
from datetime import UTC, datetime
from typing import Any

import cbor2
import pytest

from signer.errors import Reason
from signer.format_terms import ContentRules
from signer.formats import dcc
from signer.formats.payloads import PayloadError

NOW = datetime(2022, 1, 15, 12, 0, tzinfo=UTC)

ENTRIES: dict[str, dict[str, Any]] = {
    "v": {"tg": "840539006", "dn": 2, "sd": 2, "dt": "2022-01-15"},
    "t": {"tg": "840539006", "sc": "2022-01-15T19:00:00+07:00"},
    "r": {"tg": "840539006", "fr": "2022-01-15", "df": "2022-01-26", "du": "2022-07-01"},
}


def document(kind: str = "v", **entry: object) -> dict[str, Any]:
    """A certificate that all rules below allow."""
    shared = {"co": "VN", "is": "Ministry of Health", "ci": "URN:UVCI:01:VN:ABC#1"}
    return {
        "ver": "1.3.0",
        "nam": {"fn": "Nguyễn", "gn": "Văn A"},
        "dob": "1990-01-01",
        kind: [ENTRIES[kind] | shared | entry],
    }


def complete(kind: str = "v", **entry: object) -> dict[str, Any]:
    """A certificate as the schema has it."""
    missing = {
        "v": {"vp": "1119349007", "mp": "EU/1/20/1528", "ma": "ORG-100030215"},
        "t": {"tt": "LP6464-4", "tr": "260415000"},
        "r": {},
    }
    value = document(kind, **missing[kind] | entry)
    return value | {"nam": value["nam"] | {"fnt": "NGUYEN", "gnt": "VAN<A"}}


def without(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: member for name, member in value.items() if name not in names}


def encodings(value: object) -> tuple[bytes, ...]:
    return (
        json.dumps(value).encode(),
        b"\n " + json.dumps(value, ensure_ascii=False, indent=1).encode(),
        cbor2.dumps(value),
        cbor2.dumps(value, indefinite_containers=True),
    )


@pytest.mark.parametrize("kind", dcc.TYPES)
def test_json_and_cbor_are_read_alike(kind: str) -> None:
    value = document(kind) | {"extra": {"x": [1, 2.5, None, True, "é"]}}
    for payload in encodings(value):
        assert dcc.read(payload) == (value, kind, value[kind][0])


@pytest.mark.parametrize("empty", [[], None])
def test_empty_groups_do_not_count(empty: object) -> None:
    value = document("v") | {"t": empty, "r": empty}
    for payload in encodings(value):
        assert dcc.read(payload).type == "v"


REFUSED: dict[str, Any] = {
    "no ver": without(document(), "ver"),
    "no nam": without(document(), "nam"),
    "no dob": without(document(), "dob"),
    "no group": without(document(), "v"),
    "empty group": document() | {"v": []},
    "all groups empty": document() | {"v": [], "t": [], "r": None},
    "two groups": document("v") | document("t"),
    "three groups": document("v") | document("t") | document("r"),
    "two entries": document() | {"v": [ENTRIES["v"], ENTRIES["v"]]},
    "group is an object": document() | {"v": {"a": 1}},
    "group is text": document() | {"v": "x"},
    "group is zero": document() | {"v": 0},
    "entry is text": document() | {"v": ["x"]},
    "entry is null": document() | {"v": [None]},
    "entry is a list": document() | {"v": [[]]},
    "object without anything": {},
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_refused_certificates(value: object) -> None:
    for payload in encodings(value):
        with pytest.raises(PayloadError) as caught:
            dcc.read(payload)
        assert caught.value.failure.reason is Reason.PAYLOAD_INVALID


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"\x80", b"\xa0", b"\xbf\xff", b"\xc0", b"\xd9\xd9\xf7\xa0", b"\xff", b"x"],
)
def test_refused_payloads(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        dcc.read(payload)


def test_length_is_bounded() -> None:
    value = document() | {"x": ""}
    room = dcc.MAX_BYTES - len(json.dumps(value).encode())
    longest = json.dumps(document() | {"x": "a" * room}).encode()
    assert len(longest) == dcc.MAX_BYTES
    assert dcc.read(longest).type == "v"
    with pytest.raises(PayloadError, match="longer than 16384 bytes"):
        dcc.read(longest + b" ")


ALL_RULES = ContentRules(
    countries=frozenset({"VN", "LA"}),
    issuers=frozenset({"Ministry of Health"}),
    certificate_types=frozenset(dcc.TYPES),
    identifier_prefix="URN:UVCI:01:VN:",
    future_dates=False,
)


def check(value: dict[str, Any], rules: ContentRules) -> None:
    ahead = dcc.horizon(int(NOW.timestamp()))
    dcc.check(dcc.read(json.dumps(value).encode()), rules, ahead)


@pytest.mark.parametrize("kind", dcc.TYPES)
def test_what_all_rules_allow(kind: str) -> None:
    check(document(kind), ALL_RULES)


def test_without_rules_everything_is_allowed() -> None:
    check(document(co="XX", ci=None, dt="2999-01-01"), ContentRules())


DENIED: dict[str, tuple[ContentRules, str, dict[str, Any]]] = {
    "country": (ContentRules(countries=frozenset({"VN"})), "countries", document(co="LA")),
    "country in lower case": (
        ContentRules(countries=frozenset({"VN"})),
        "countries",
        document(co="vn"),
    ),
    "country is a list": (
        ContentRules(countries=frozenset({"VN"})),
        "countries",
        document(co=["VN"]),
    ),
    "no country": (
        ContentRules(countries=frozenset({"VN"})),
        "countries",
        document() | {"v": [{"dt": "2022-01-15"}]},
    ),
    "issuer": (ContentRules(issuers=frozenset({"A"})), "issuers", document(**{"is": "B"})),
    "type": (ContentRules(certificate_types=frozenset({"t"})), "certificate_types", document("v")),
    "prefix": (
        ContentRules(identifier_prefix="URN:UVCI:01:VN:"),
        "identifier_prefix",
        document(ci="URN:UVCI:01:LA:1"),
    ),
    "no identifier": (ContentRules(identifier_prefix=""), "identifier_prefix", document(ci=None)),
    "vaccinated in two days": (
        ContentRules(future_dates=False),
        "future_dates",
        document(dt="2022-01-17"),
    ),
    "sampled in a second": (
        ContentRules(future_dates=False),
        "future_dates",
        document("t", sc="2022-01-15T19:00:01+07:00"),
    ),
    "found positive in two days": (
        ContentRules(future_dates=False),
        "future_dates",
        document("r", fr="2022-01-17"),
    ),
}


@pytest.mark.parametrize(("rules", "rule", "value"), DENIED.values(), ids=DENIED.keys())
def test_what_a_rule_denies(rules: ContentRules, rule: str, value: dict[str, Any]) -> None:
    with pytest.raises(PayloadError) as caught:
        check(value, rules)
    assert caught.value.failure.reason is Reason.CONTENT_DENIED
    assert f"content rule {rule}:" in caught.value.failure.message
    assert caught.value.failure.rule == f"default.content.{rule}"


NO_FUTURE = ContentRules(future_dates=False)
WITH_SCHEMA = ContentRules(future_dates=False, dcc_schema=True)


@pytest.mark.parametrize("empty", [[], None])
@pytest.mark.parametrize(("kind", "other"), [("v", "t"), ("t", "r"), ("r", "v")])
def test_the_schema_refuses_an_empty_group(kind: str, other: str, empty: object) -> None:
    value = complete(kind) | {other: empty}
    check(value, NO_FUTURE)
    with pytest.raises(PayloadError) as caught:
        check(value, WITH_SCHEMA)
    failure = caught.value.failure
    assert (failure.reason, failure.member) == (Reason.PAYLOAD_INVALID, other)
    assert failure.message == f"{other} should be absent, not empty: the certificate has {kind}"


NEITHER_DATE_NOR_TIME: tuple[Any, ...] = (
    None,
    20220101,
    "",
    "yesterday",
    "2022",
    "2022-01",
    "20220101",
    "2022-W01-1",
    "2022-02-30",
    "0000-01-01",
    " 2022-01-1",
    "2022-01-01\n",
    "2022-01-01T00:00:00",  # at which place?
    "2022-01-01T24:00:00Z",
    "2022-01-01t00:00:00z",
    "2022-01-01T00:00:60Z",
    "2022-02-30T00:00:00Z",
    "2022-01-01T00:00:00+24:00",
    "\u0662\u0660\u0662\u0662-\u0660\u0661-\u0660\u0661",
)


@pytest.mark.parametrize("rules", [NO_FUTURE, WITH_SCHEMA], ids=["no schema", "schema"])
@pytest.mark.parametrize(("kind", "member"), [("v", "dt"), ("t", "sc"), ("r", "fr")])
@pytest.mark.parametrize("date", NEITHER_DATE_NOR_TIME, ids=repr)
def test_what_is_no_date_makes_the_payload_invalid(
    rules: ContentRules, kind: str, member: str, date: object
) -> None:
    with pytest.raises(PayloadError) as caught:
        check(complete(kind, **{member: date}), rules)
    failure = caught.value.failure
    assert (failure.reason, failure.member) == (Reason.PAYLOAD_INVALID, f"{kind}.0.{member}")
    assert failure.message.startswith(failure.member + " should be a ")


@pytest.mark.parametrize("rules", [NO_FUTURE, WITH_SCHEMA], ids=["no schema", "schema"])
@pytest.mark.parametrize(("kind", "member"), [("v", "dt"), ("t", "sc"), ("r", "fr")])
@pytest.mark.parametrize(
    ("time", "ahead"),
    [
        ("2021-03-18T22:54:00+02:00", False),
        ("2022-01-15T12:00:00Z", False),
        ("2022-01-15T12:00:00.000001Z", True),
        ("2022-01-15T19:00:00+07:00", False),
        ("2022-01-15T19:00:01+0700", True),
        ("2022-01-15T19:00:01+07", True),
        ("2022-01-15T07:00:01-05", True),
        ("0001-01-01T00:00:00+14:00", False),
        ("9999-12-31T23:59:59-14:00", True),
    ],
)
def test_a_time_is_compared_by_its_instant(
    rules: ContentRules, kind: str, member: str, time: str, ahead: bool
) -> None:
    value = complete(kind, **{member: time})
    if not ahead:
        check(value, rules)
        return
    with pytest.raises(PayloadError) as caught:
        check(value, rules)
    assert caught.value.failure.reason is Reason.CONTENT_DENIED
    assert caught.value.failure.rule == "default.content.future_dates"


def test_dates_are_not_read_where_no_rule_asks() -> None:
    check(document(dt="2021"), ContentRules(countries=frozenset({"VN"})))


NAME = "Bộ Y tế"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_issuer_is_the_same_in_both_forms_of_unicode(form: Any) -> None:
    rules = ContentRules(issuers=frozenset({unicodedata.normalize("NFC", NAME)}))
    check(document(**{"is": unicodedata.normalize(form, NAME)}), rules)
    with pytest.raises(PayloadError):
        check(document(**{"is": "Bo Y te"}), rules)
