"""What falls due: versions, a clock, and days go in."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from signer.cli.keys.rotating import due, end_of, names_due
from signer.client import KeyVersion
from tests.unit.cli.operations_played import certify, der, version

NOW = datetime.now(UTC)
K = "facilities/f/keys/k"


def at(days: float) -> datetime:
    return NOW + timedelta(days=days)


def v(number: int, state: str = "ACTIVE", key: str = K, **changed: Any) -> KeyVersion:
    times = {
        name: at(days)
        for name, days in changed.items()
        if name != "certificate" and days is not None
    }
    rest = {name: value for name, value in changed.items() if name not in times}
    begun = {"activate_at": at(-100)} if state != "PRE_ACTIVE" else {}
    return version(f"{key}/versions/{number}", state, **(begun | times | rest))


def found(*versions: KeyVersion, days: int = 30) -> list[tuple[Any, ...]]:
    return [
        (each.version[len(K) - 1 :].rpartition("/")[2], each.cause, each.successor, each.prepared)
        for each in due(versions, NOW, days)
    ]


def test_the_earliest_end_counts() -> None:
    certificate = der(certify(ec.generate_private_key(ec.SECP256R1()), "CN=x", days=5))
    one = v(1, sign_until=9, deactivate_at=3, certificate=certificate)
    assert end_of(one) == (at(3), "deactivate_at")
    assert end_of(one._replace(deactivate_at=None, certificate=None)) == (at(9), "sign_until")
    later = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    assert end_of(one._replace(deactivate_at=None)) == (later, "certificate")
    assert end_of(v(1)) == (None, "")


@pytest.mark.parametrize(
    ("ends", "days", "is_due"),
    [(30, 30, True), (30.01, 30, False), (0, 0, True), (-5, 30, True), (0.01, 0, False)],
)
def test_what_ends_within_the_days_is_due(ends: float, days: int, is_due: bool) -> None:
    expected = [("1", "sign_until", None, None)] if is_due else []
    assert found(v(1, sign_until=ends), days=days) == expected


@pytest.mark.parametrize("state", ["DEACTIVATED", "COMPROMISED", "DESTROY_SCHEDULED", "DESTROYED"])
def test_what_has_ended_for_good_is_not_due(state: str) -> None:
    assert found(v(1, state, sign_until=1)) == []


def test_nothing_is_due_that_no_time_ends() -> None:
    assert found(v(1), v(2, "PRE_ACTIVE", sign_until=1)) == []


def test_a_suspended_version_is_due_and_takes_nothing_over() -> None:
    assert found(v(1, "SUSPENDED", sign_until=9)) == [("1", "sign_until", None, None)]
    assert found(v(1, sign_until=9), v(2, "SUSPENDED")) == [("1", "sign_until", None, None)]


@pytest.mark.parametrize(
    ("other", "successor", "prepared"),
    [
        (v(2, "PRE_ACTIVE", activate_at=5), f"{K}/versions/2", None),
        (v(2, "PRE_ACTIVE", activate_at=9), f"{K}/versions/2", None),
        (v(2, "PRE_ACTIVE", activate_at=10), None, None),  # a gap is no succession
        (v(2, "PRE_ACTIVE"), None, f"{K}/versions/2"),
        (v(2), f"{K}/versions/2", None),
        (v(2, "DEACTIVATED"), None, None),
        (v(2, "COMPROMISED"), None, None),
        (v(1, key=f"{K}2"), None, None),
    ],
)
def test_who_takes_over(other: KeyVersion, successor: str | None, prepared: str | None) -> None:
    [first, *_] = found(v(1, sign_until=9), other)
    assert first == ("1", "sign_until", successor, prepared)


def test_one_that_ends_first_takes_nothing_over() -> None:
    assert found(v(1, sign_until=9), v(2, sign_until=8), days=9) == [
        ("2", "sign_until", f"{K}/versions/1", None),
        ("1", "sign_until", None, None),
    ]


def test_the_soonest_comes_first_and_keys_are_named_once() -> None:
    versions = [
        v(1, key=f"{K}1", sign_until=9),
        v(2, key=f"{K}1", sign_until=9),
        v(1, key=f"{K}2", sign_until=2),
        v(1, key=f"{K}3", sign_until=5),
        v(2, "PRE_ACTIVE", key=f"{K}3"),
        v(1, key=f"{K}4", sign_until=5),
        v(2, key=f"{K}4"),
        v(1, "SUSPENDED", key=f"{K}5", sign_until=5),
        v(1, key=f"{K}6", sign_until=99),
    ]
    plan = due(versions, NOW, 30)
    ends = [each.ends for each in plan if each.ends is not None]
    assert len(ends) == len(plan)
    assert ends == sorted(ends)
    # 3 has a version that waits, 4 one that goes on, 5 is suspended: a rotation refuses them.
    assert names_due(plan) == [f"{K}1", f"{K}2"]
