"""A key signs HCERT alone or not at all, and no rule is stated that does nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signer.errors import Reason, Violation
from signer.model import Format, KeyName
from signer.policy.compile import compile_policy
from signer.policy.decide import FORBIDDEN, decide, may_use
from signer.policy.rules import Policy

MINISTRY = "spiffe://signer.example/ministry"
PROVINCE = "spiffe://signer.example/province/01"
STRANGER = "spiffe://signer.example/officer"
NOW = 1_772_427_600.0
ALL = [str(one) for one in Format]


def document(formats: list[str], /, **facility: Any) -> dict[str, Any]:
    return {
        "roles": {"auditor": [STRANGER]},
        "groups": {"01": {"name": "Ha Noi", "clients": [PROVINCE]}},
        "profiles": {
            "ministry": {
                "formats": formats,
                "blind": sorted({"DIGEST", "CMS_DIGEST"} & set(formats)),
                "algorithms": ["ES256"],
                "max_batch_items": 10,
                "delegation": True,
                "hcert": {"issuer": "VN", "validity_days": 365},
                "shc": {"issuer": "https://cards.example"},
                "timestamp": {"policy": "1.2.3", "accuracy_seconds": 1},
            }
        },
        "facilities": {
            "moh": {"profile": "ministry", "group": "01", "clients": [MINISTRY], **facility}
        },
    }


def compiled(made: dict[str, Any]) -> tuple[Policy, list[Violation]]:
    problems: list[Violation] = []
    formats = made["profiles"]["ministry"]["formats"]
    if not made["profiles"]["ministry"]["blind"]:
        del made["profiles"]["ministry"]["blind"]
    for name in ("HCERT", "SHC", "TIMESTAMP"):
        if name not in formats:
            del made["profiles"]["ministry"][name.lower()]
    return compile_policy(made, "", problems), problems


def loaded(formats: list[str], /, **facility: Any) -> Policy:
    policy, problems = compiled(document(formats, **facility))
    assert problems == []
    return policy


def allowed(policy: Policy, key: str) -> set[Format]:
    name = KeyName("moh", key)
    return {one for one in Format if decide(policy, MINISTRY, name, one, NOW).allowed}


LISTED = {"dcc": {"formats": ["HCERT"]}, "rest": {"formats": ["COSE_SIGN1", "DIGEST"]}}


def test_listed_keys_sign_in_the_formats_that_they_choose() -> None:
    policy = loaded(ALL, keys=LISTED)
    assert allowed(policy, "dcc") == {Format.HCERT}
    assert allowed(policy, "rest") == {Format.COSE_SIGN1, Format.DIGEST}


@pytest.mark.parametrize("principal", [MINISTRY, PROVINCE])
@pytest.mark.parametrize("requested", Format)
@pytest.mark.parametrize("keys", [{}, LISTED])
def test_an_unlisted_key_signs_nothing_where_hcert_is_combined(
    principal: str, requested: Format, keys: dict[str, Any]
) -> None:
    policy, name = loaded(ALL, keys=keys), KeyName("moh", "other")
    decision = decide(policy, principal, name, requested, NOW)
    assert (decision.reason, decision.rule) == (Reason.POLICY_DENIED, "facilities.moh.keys")
    assert "list the key" in decision.message
    terms = may_use(policy, principal, name)
    assert terms is not None
    assert terms.formats == set()
    assert terms.rule("formats") == "facilities.moh.keys"
    assert terms.rule("algorithms") == "profiles.ministry.algorithms"


def test_other_principals_do_not_learn_that_a_key_is_unlisted() -> None:
    name = KeyName("moh", "other")
    assert decide(loaded(ALL), STRANGER, name, Format.HCERT, NOW) == FORBIDDEN


@pytest.mark.parametrize("formats", [["HCERT"], ["SHC"], ["JWS", "COSE_SIGN1"], ["DIGEST"]])
def test_keys_need_not_be_listed_where_hcert_is_not_combined(formats: list[str]) -> None:
    assert allowed(loaded(formats), "any") == {Format(one) for one in formats}
    assert allowed(loaded(ALL, formats=formats), "any") == {Format(one) for one in formats}


FORMATS = st.lists(st.sampled_from(ALL), min_size=1, unique=True)
MAYBE = st.fixed_dictionaries({}, optional={"formats": FORMATS})


@given(FORMATS, MAYBE, MAYBE)
def test_no_key_signs_a_format_that_stands_alone_and_another(
    formats: list[str], facility: dict[str, Any], key: dict[str, Any]
) -> None:
    policy, problems = compiled(document(formats, **facility, keys={"listed": key}))
    stated = set(key.get("formats", facility.get("formats", formats)))
    alone = {"HCERT", "SHC", "TIMESTAMP"}
    if stated & alone and len(stated) > 1:
        assert "facilities.moh.keys.listed.formats" in {problem.field for problem in problems}
    if problems:
        return
    for name in ("listed", "other"):
        signs = allowed(policy, name)
        assert len(signs) == 1 or not signs & {Format(each) for each in alone}
    assert allowed(policy, "listed") == stated


def test_content_is_inherited_without_complaint() -> None:
    made = document(["HCERT", "JWS", "DIGEST"])
    made["profiles"]["ministry"]["content"] = {"countries": ["VN"], "required_members": ["id"]}
    made["facilities"]["moh"]["keys"] = {
        "dcc": {"formats": ["HCERT"]},
        "records": {"formats": ["JWS"], "check_every": 1},
        "digest": {"formats": ["DIGEST"]},
    }
    policy, problems = compiled(made)
    assert problems == []
    assert allowed(policy, "digest") == {Format.DIGEST}
    assert policy.facilities["moh"].keys["records"].content.required_members == {"id"}


def test_required_members_of_many_facilities_are_reported_once() -> None:
    made = document(["JWS", "MESSAGE"])
    made["profiles"]["ministry"]["content"] = {"required_members": ["id"]}
    made["facilities"] |= {f"f-{number}": made["facilities"]["moh"] for number in range(20)}
    _, problems = compiled(made)
    assert [problem.field for problem in problems] == ["profiles.ministry.content.required_members"]


def test_a_profile_may_be_wider_than_required_members_allow_where_facilities_narrow_it() -> None:
    made = document(["JWS", "MESSAGE"], formats=["JWS"])
    made["profiles"]["ministry"]["content"] = {"required_members": ["id"]}
    assert compiled(made)[1] == []
