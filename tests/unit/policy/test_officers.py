"""Officers beside the policy: a role for them, and no signatures."""

from __future__ import annotations

from typing import Any

import pytest

from signer.errors import Violation
from signer.model import Role
from signer.policy.compile import compile_policy
from signer.policy.decide import roles_of
from signer.policy.officers import officer_problems, with_officers
from signer.policy.rules import Policy

A, B = "spiffe://signer.example/officer/a", "spiffe://signer.example/officer/b"
CLINIC, PROVINCE = "spiffe://signer.example/clinic", "spiffe://signer.example/province"
OPERATOR, IDLE = "spiffe://signer.example/operator", "spiffe://signer.example/idle"


@pytest.fixture
def policy() -> Policy:
    document: dict[str, Any] = {
        "roles": {"operator": [OPERATOR], "auditor": []},
        "groups": {
            "01": {"name": "Ha Noi", "clients": [PROVINCE]},
            "02": {"name": "Hue", "clients": [IDLE]},
        },
        "profiles": {
            "clinic": {
                "formats": ["JWS"],
                "algorithms": ["ES256"],
                "max_batch_items": 5,
                "delegation": True,
            }
        },
        "facilities": {
            "f": {"profile": "clinic", "group": "01", "clients": [CLINIC]},
        },
    }
    problems: list[Violation] = []
    made = compile_policy(document, "00" * 32, problems)
    assert problems == []
    return made


def test_whoever_is_named_an_officer_is_one(policy: Policy) -> None:
    after = with_officers(policy, [A, OPERATOR])
    assert roles_of(after, A) == {Role.OFFICER}
    assert roles_of(after, OPERATOR) == {Role.OFFICER, Role.OPERATOR}
    assert roles_of(after, CLINIC) == {Role.ISSUER}
    assert roles_of(after, B) == frozenset()
    assert roles_of(policy, A) == frozenset(), "the policy itself is as it was"
    assert after.sha256 == policy.sha256


def test_without_officers_the_policy_is_as_it_was(policy: Policy) -> None:
    assert with_officers(policy, []) == policy


def test_who_decides_signs_nothing(policy: Policy) -> None:
    assert officer_problems(policy, [A, B, OPERATOR]) == []
    problems = officer_problems(policy, [PROVINCE, A, CLINIC])
    assert [problem.split(" ", 1)[0] for problem in problems] == [CLINIC, PROVINCE]
    assert all("officers must not be clients" in problem for problem in problems)
