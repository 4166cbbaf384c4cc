"""What the audit log gets of refused calls: named, and never more than so much."""

from collections import Counter
from typing import Any

from signer.audit.format.record import RecordKind, encode
from signer.daemon.denials import MAX_CALLERS, MAX_NAME, MAX_ROWS_OF_ONE, Denials
from signer.errors import Reason
from signer.events import CallDenied

SIGN = "/signer.v1.SigningService/SignBatch"


def denied(caller: str = "spiffe://a/b", key: str = "k", reason: str = "R") -> CallDenied:
    return CallDenied(caller, key, reason, SIGN, "issuer", "ipv4:192.0.2.1:5000")


def taken(denials: Denials) -> list[Any]:
    rows: list[Any] = denials.take()
    encode(0, 0, RecordKind.DENIALS, {"denials": rows})  # a record can hold them
    return rows


def test_calls_are_added_up_by_caller_key_reason_and_method() -> None:
    denials = Denials()
    for event in (denied(), denied(), denied(key="other"), denied("certificate 1f")):
        denials.add(event)
    last = SIGN, "issuer", "ipv4:192.0.2.1:5000"
    assert taken(denials) == [
        ["spiffe://a/b", "k", "R", 2, *last],
        ["spiffe://a/b", "other", "R", 1, *last],
        ["certificate 1f", "k", "R", 1, *last],
    ]
    assert taken(denials) == []


def test_one_caller_has_so_many_rows_and_then_only_a_count() -> None:
    denials = Denials()
    for number in range(10_000):
        denials.add(denied(key=f"k{number}", reason=list(Reason)[number % 2]))
    denials.add(denied("spiffe://a/other"))
    rows = taken(denials)
    mine = [row for row in rows if row[0] == "spiffe://a/b"]
    assert len(mine) == MAX_ROWS_OF_ONE + 2
    assert sum(row[3] for row in mine) == 10_000
    assert len(rows) == len(mine) + 1  # who comes later is still named


def test_so_many_callers_are_named_and_the_calls_of_others_are_counted() -> None:
    denials = Denials()
    for number in range(5 * MAX_CALLERS):
        denials.add(denied(f"spiffe://a/{number}"))
    calls = Counter({row[0]: row[3] for row in taken(denials)})
    assert len(calls) == MAX_CALLERS + 1
    assert calls[""] == 4 * MAX_CALLERS


def test_a_long_name_is_cut_and_hashed() -> None:
    denials = Denials()
    for end in "ab":
        denials.add(denied("spiffe://a/" + "x" * 2000 + end))
    names = [row[0] for row in taken(denials)]
    assert len(set(names)) == 2
    assert all(len(name) <= MAX_NAME and name.startswith("spiffe://a/x") for name in names)
