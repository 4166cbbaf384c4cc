from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.algorithms import Algorithm
from signer.errors import Reason, Violation
from signer.model import Format, KeyName, Role
from signer.policy.compile import compile_policy
from signer.policy.decide import (
    FORBIDDEN,
    UNKNOWN,
    check_algorithm,
    decide,
    may_use,
    visible_facilities,
)
from signer.policy.rules import Policy

CLINIC = "spiffe://signer.example/facility/01-001"
PROVINCE = "spiffe://signer.example/province/01"
MINISTRY = "spiffe://signer.example/ministry"
IDLE_PROVINCE = "spiffe://signer.example/province/02"
WATCHER = "spiffe://signer.example/watcher"
STRANGER = "spiffe://signer.example/stranger"
PRINCIPALS = [CLINIC, PROVINCE, MINISTRY, IDLE_PROVINCE, WATCHER, STRANGER]

MONDAY_NOON = 1_772_427_600.0  # 2026-03-02T12:00:00+07:00
HOUR = 3600
KEY = KeyName("01-001", "records")


def compiled(document: dict[str, Any]) -> Policy:
    problems: list[Violation] = []
    policy = compile_policy(document, "00" * 32, problems)
    assert problems == []
    return policy


def document() -> dict[str, Any]:
    """Returns a policy that allows; a test changes one thing."""
    return {
        "roles": {"operator": [WATCHER], "auditor": [WATCHER]},
        "groups": {
            "01": {"name": "Ha Noi", "clients": [PROVINCE]},
            "02": {"name": "Ha Giang", "clients": [IDLE_PROVINCE]},
        },
        "profiles": {
            "clinic": {
                "formats": ["JWS", "MESSAGE"],
                "algorithms": ["ES256", "EdDSA"],
                "max_batch_items": 500,
                "quotas": ["200 per second", "50,000 per day"],
                "hours": {
                    "time_zone": "Asia/Ho_Chi_Minh",
                    "open": [{"days": "mon-sat", "from": "06:00", "to": "20:00"}],
                },
                "delegation": True,
            },
            "ministry": {
                "formats": ["JWS"],
                "algorithms": ["ES256"],
                "max_batch_items": 4096,
                "priority": "high",
            },
        },
        "facilities": {
            "01-001": {
                "profile": "clinic",
                "group": "01",
                "clients": [CLINIC],
                "keys": {"plain": {"formats": ["MESSAGE"]}, "own": {"delegation": False}},
            },
            "01-002": {"profile": "clinic", "group": "01", "delegation": False},
            "02-001": {"profile": "clinic", "group": "02", "delegation": False},
            "moh": {"profile": "ministry", "clients": [MINISTRY]},
        },
    }


POLICY = compiled(document())


def test_client_is_allowed_by_its_rule() -> None:
    decision = decide(POLICY, CLINIC, KEY, Format.JWS, MONDAY_NOON)
    assert decision.allowed
    assert decision.rule == "facilities.01-001.clients"
    assert decision.terms is POLICY.facilities["01-001"].terms


def test_delegated_client_is_allowed_by_the_rule_of_its_group() -> None:
    decision = decide(POLICY, PROVINCE, KEY, Format.JWS, MONDAY_NOON)
    assert decision.allowed
    assert decision.rule == "groups.01.clients"


def test_delegation_can_be_switched_off_for_a_facility_and_a_key() -> None:
    for key in (KeyName("01-002", "records"), KeyName("01-001", "own")):
        assert decide(POLICY, PROVINCE, key, Format.JWS, MONDAY_NOON) == FORBIDDEN
    own = decide(POLICY, CLINIC, KeyName("01-001", "own"), Format.JWS, MONDAY_NOON)
    assert own.allowed


@pytest.mark.parametrize("principal", [STRANGER, IDLE_PROVINCE, "", CLINIC.upper(), CLINIC + "/"])
def test_unknown_principal(principal: str) -> None:
    assert principal not in POLICY.roles
    assert decide(POLICY, principal, KEY, Format.JWS, MONDAY_NOON) == UNKNOWN


@given(
    st.sampled_from([CLINIC, PROVINCE, WATCHER]),
    st.sampled_from(["moh", "01-002", "absent", "02-001"]),
    st.sampled_from(["records", "plain", "absent"]),
    st.sampled_from(Format),
    st.floats(0, 4e9),
)
def test_forbidden_and_absent_look_the_same(
    principal: str, facility: str, key: str, requested: Format, now: float
) -> None:
    decision = decide(POLICY, principal, KeyName(facility, key), requested, now)
    assert decision == FORBIDDEN
    assert decision.reason is Reason.POLICY_DENIED
    assert decision.rule == "default.deny"


@given(
    st.sampled_from(PRINCIPALS),
    st.sampled_from(["moh", "01-001", "01-002", "absent"]),
    st.sampled_from(["records", "plain", "own"]),
    st.sampled_from(Format),
    st.floats(1.7e9, 1.9e9),
)
def test_every_decision_names_its_rule_and_undecided_is_denied(
    principal: str, facility: str, key: str, requested: Format, now: float
) -> None:
    decision = decide(POLICY, principal, KeyName(facility, key), requested, now)
    assert decision.rule
    assert decision.allowed == (decision.terms is not None)
    if not decision.allowed:
        assert decision.reason is not None
        assert decision.message
        return
    terms = decision.terms
    assert terms is may_use(POLICY, principal, KeyName(facility, key))
    assert terms is not None
    assert requested in terms.formats
    assert terms.hours is None or terms.hours.is_open(now)


@pytest.mark.parametrize(
    ("key", "requested", "rule"),
    [
        ("records", Format.HCERT, "profiles.clinic.formats"),
        ("plain", Format.JWS, "facilities.01-001.keys.plain.formats"),
        ("plain", Format.HCERT, "profiles.clinic.formats"),
    ],
)
def test_denied_format_names_the_outermost_rule(key: str, requested: Format, rule: str) -> None:
    decision = decide(POLICY, CLINIC, KeyName("01-001", key), requested, MONDAY_NOON)
    assert (decision.reason, decision.rule) == (Reason.POLICY_DENIED, rule)
    assert decision.terms is None


def test_closed_hours_return_the_next_opening() -> None:
    decision = decide(POLICY, CLINIC, KEY, Format.JWS, MONDAY_NOON + 9 * HOUR)
    assert (decision.reason, decision.rule) == (Reason.CLOSED_HOURS, "profiles.clinic.hours")
    assert decision.retry_after == 9 * HOUR
    assert "from 2026-03-03T06:00:00+07:00 (Asia/Ho_Chi_Minh) on" in decision.message


def test_closed_by_the_narrower_hours_names_them() -> None:
    changed = document()
    changed["facilities"]["01-001"]["hours"] = {
        "time_zone": "Asia/Ho_Chi_Minh",
        "open": [{"days": "mon-sun", "from": "05:00", "to": "10:00"}],
    }
    decision = decide(compiled(changed), CLINIC, KEY, Format.JWS, MONDAY_NOON)
    assert (decision.reason, decision.rule) == (Reason.CLOSED_HOURS, "facilities.01-001.hours")
    # At 05:00 on Tuesday the facility would open, but its profile only at 06:00.
    assert decision.retry_after == 18 * HOUR


@pytest.mark.parametrize(
    ("seconds", "rule"),
    [
        (-1, "profiles.clinic.valid_from"),
        (0, None),
        (HOUR - 1, None),
        (HOUR, "facilities.01-001.valid_until"),
    ],
)
def test_validity_is_from_its_first_second_to_before_its_last(
    seconds: int, rule: str | None
) -> None:
    changed = document()
    changed["profiles"]["clinic"]["valid_from"] = "2026-03-02T12:00:00+07:00"
    changed["facilities"]["01-001"]["valid_until"] = "2026-03-02T06:00:00Z"
    decision = decide(compiled(changed), CLINIC, KEY, Format.JWS, MONDAY_NOON + seconds)
    assert decision.allowed == (rule is None)
    assert rule is None or (decision.reason, decision.rule) == (Reason.POLICY_DENIED, rule)


def test_algorithm_is_checked_once_the_key_is_known() -> None:
    terms = POLICY.facilities["01-001"].terms
    assert check_algorithm(terms, Format.JWS, Algorithm.ES256) is None
    denied = check_algorithm(terms, Format.JWS, Algorithm.RS256)
    assert denied is not None
    assert (denied.reason, denied.rule) == (Reason.POLICY_DENIED, "profiles.clinic.algorithms")


@pytest.mark.parametrize(
    ("principal", "roles"),
    [
        (CLINIC, {Role.ISSUER}),
        (PROVINCE, {Role.ISSUER}),
        (WATCHER, {Role.OPERATOR, Role.AUDITOR}),
        (IDLE_PROVINCE, set()),
    ],
)
def test_roles(principal: str, roles: set[Role]) -> None:
    assert POLICY.roles.get(principal, set()) == roles


@pytest.mark.parametrize(
    ("principal", "facilities"),
    [
        (CLINIC, frozenset({"01-001"})),
        (PROVINCE, frozenset({"01-001"})),
        (MINISTRY, frozenset({"moh"})),
        (IDLE_PROVINCE, frozenset()),
        (STRANGER, frozenset()),
        (WATCHER, None),
    ],
)
def test_visible_facilities(principal: str, facilities: frozenset[str] | None) -> None:
    assert visible_facilities(POLICY, principal) == facilities


@given(st.sampled_from(PRINCIPALS), st.sampled_from(["moh", "01-001", "01-002", "absent"]))
def test_usable_facilities_are_visible(principal: str, facility: str) -> None:
    visible = visible_facilities(POLICY, principal)
    usable = may_use(POLICY, principal, KeyName(facility, "records")) is not None
    assert visible is None or usable == (facility in visible)


def test_one_client_of_two_facilities() -> None:
    changed = document()
    changed["facilities"]["01-002"]["clients"] = [CLINIC]
    assert visible_facilities(compiled(changed), CLINIC) == frozenset({"01-001", "01-002"})


def test_officers_are_added_to_the_roles() -> None:
    officer = "spiffe://signer.example/officer"
    after = POLICY.with_officers([officer, WATCHER])
    assert after.roles[officer] == {Role.OFFICER}
    assert after.roles[WATCHER] == {Role.OFFICER, Role.OPERATOR, Role.AUDITOR}
    assert after.roles[CLINIC] == {Role.ISSUER}
    assert officer not in POLICY.roles
    assert after.sha256 == POLICY.sha256
    assert POLICY.with_officers([]) == POLICY


def test_clients_cannot_be_officers() -> None:
    assert POLICY.officer_problems([STRANGER, WATCHER]) == []
    problems = POLICY.officer_problems([PROVINCE, STRANGER, CLINIC])
    assert [problem.split(" ", 1)[0] for problem in problems] == [CLINIC, PROVINCE]
    assert all("officers must not be clients" in problem for problem in problems)
