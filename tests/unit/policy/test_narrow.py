"""Narrowing: whatever loads stays within its profile; whatever widens does not load."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from signer.errors import Violation
from signer.format_terms import ContentRules, HcertTerms
from signer.model import Format
from signer.policy.compile import compile_policy
from signer.policy.rules import WEIGHTS, Policy, Terms
from signer.policy.values import Quota

ZONE = "Asia/Ho_Chi_Minh"
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]


def subset(items: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(items), min_size=1, unique=True)


QUOTAS = st.lists(
    st.tuples(st.integers(1, 300), st.sampled_from(["second", "minute", "hour", "day"])),
    unique_by=lambda quota: quota[1],
).map(lambda quotas: [f"{limit} per {window}" for limit, window in quotas])
OPENINGS = st.lists(
    st.tuples(
        subset(DAYS), st.lists(st.integers(0, 23), min_size=2, max_size=2, unique=True).map(sorted)
    ).map(
        lambda line: {
            "days": ",".join(line[0]),
            "from": f"{line[1][0]:02}:00",
            "to": f"{line[1][1]:02}:00",
        }
    ),
    min_size=1,
    max_size=2,
)
INSTANTS = st.integers(2000, 2099).map(lambda year: f"{year}-01-01T00:00:00Z")
CONTENT = {
    "countries": subset(["VN", "LA", "KH"]),
    "issuers": subset(["A", "B"]),
    "certificate_types": subset(["v", "t", "r"]),
    "identifier_prefix": st.sampled_from(["U", "UV", "UVCI", "X"]),
    "future_dates": st.booleans(),
    "required_members": subset(["id", "lot"]),
    "dcc_schema": st.booleans(),
    "qr_level": st.sampled_from("LMQH"),
}
RULES: dict[str, st.SearchStrategy[Any]] = {
    "formats": subset(["HCERT", "JWS", "MESSAGE"]),
    "algorithms": subset(["ES256", "PS256"]),
    "max_batch_items": st.integers(1, 4096),
    "quotas": QUOTAS,
    "lifetime_signatures": st.integers(1, 300),
    "hours": st.fixed_dictionaries({"time_zone": st.just(ZONE), "open": OPENINGS}),
    "valid_from": INSTANTS,
    "valid_until": INSTANTS,
    "delegation": st.booleans(),
    "priority": st.sampled_from(sorted(WEIGHTS)),
    "check_every": st.integers(1, 64),
    "hcert": st.fixed_dictionaries({"validity_days": st.integers(1, 365)}),
    "content": st.fixed_dictionaries({}, optional=CONTENT),
}


def without_idle_rules(profile: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the content rule of a format that the profile does not have."""
    if "JWS" not in profile["formats"]:
        profile.get("content", {}).pop("required_members", None)
    return profile


PROFILE = st.fixed_dictionaries(
    {name: RULES[name] for name in ("algorithms", "max_batch_items")}
    | {
        "formats": RULES["formats"].map(lambda formats: sorted({*formats, "HCERT"})),
        "hcert": st.integers(1, 365).map(lambda days: {"issuer": "VN", "validity_days": days}),
    },
    optional={
        name: rule
        for name, rule in RULES.items()
        if name not in ("algorithms", "max_batch_items", "formats", "hcert", "valid_from")
    },
).map(without_idle_rules)
FACILITY = st.fixed_dictionaries({}, optional=RULES)
KEY = st.fixed_dictionaries({}, optional={k: v for k, v in RULES.items() if k != "quotas"})


def compiled(
    profile: dict[str, Any], facility: dict[str, Any], key: dict[str, Any] | None = None
) -> tuple[Policy, list[Violation]]:
    problems: list[Violation] = []
    document: dict[str, Any] = {
        "groups": {"01": {"name": "Ha Noi"}},
        "profiles": {"p": profile},
        "facilities": {
            "whole": {"profile": "p", "group": "01"},
            "f": {"profile": "p", "group": "01", **facility},
        },
    }
    if key is not None:
        document["facilities"]["f"]["keys"] = {"k": key}
    return compile_policy(document, "", problems), problems


def assert_within(inner: Terms, outer: Terms) -> None:
    """All rules but the formats: those of a facility are empty where its keys must choose."""
    assert inner.algorithms <= outer.algorithms
    assert inner.max_batch_items <= outer.max_batch_items
    limits = {quota.window_seconds: quota.limit for quota in inner.quotas}
    assert all(limits[quota.window_seconds] <= quota.limit for quota in outer.quotas)
    if outer.lifetime_signatures is not None:
        assert (inner.lifetime_signatures or 9e9) <= outer.lifetime_signatures
    if outer.hours is not None:
        assert inner.hours is not None
        assert inner.hours.intersection(outer.hours) == inner.hours
    assert outer.valid_from is None or (inner.valid_from or 0) >= outer.valid_from
    assert outer.valid_until is None or (inner.valid_until or 9e9) <= outer.valid_until
    assert inner.delegation <= outer.delegation
    assert inner.weight <= outer.weight
    assert inner.check_every <= outer.check_every
    assert inner.hcert is not None
    assert outer.hcert is not None
    assert inner.hcert.issuer == outer.hcert.issuer
    assert inner.hcert.validity <= outer.hcert.validity
    assert_content_within(inner.content, outer.content)


def assert_content_within(inner: ContentRules, outer: ContentRules) -> None:
    for name in ("countries", "issuers", "certificate_types"):
        mine, theirs = getattr(inner, name), getattr(outer, name)
        assert not theirs or (mine and mine <= theirs)
    assert (inner.identifier_prefix or "").startswith(outer.identifier_prefix or "")
    assert inner.future_dates <= outer.future_dates
    assert inner.dcc_schema >= outer.dcc_schema
    assert inner.qr_level is not None
    assert outer.qr_level is not None
    assert "LMQH".index(inner.qr_level) >= "LMQH".index(outer.qr_level)
    assert inner.required_members >= outer.required_members


@given(PROFILE, FACILITY, KEY)
def test_what_loads_is_within_what_is_around_it(
    profile: dict[str, Any], facility: dict[str, Any], key: dict[str, Any]
) -> None:
    policy, problems = compiled(profile, facility, key)
    if problems:
        assert all(problem.field.startswith("facilities.f.") for problem in problems)
        return
    terms, of_key = policy.facilities["f"].terms, policy.facilities["f"].keys["k"]
    assert_within(terms, policy.facilities["whole"].terms)
    assert_within(of_key, terms)
    around = facility.get("formats", profile["formats"])
    assert set(around) <= set(profile["formats"])
    assert of_key.formats == set(key.get("formats", around)) <= set(around)
    assert terms.formats in (set(), set(around))


@given(PROFILE, FACILITY, KEY)
def test_no_key_has_formats_that_evade_the_rules_of_another(
    profile: dict[str, Any], facility: dict[str, Any], key: dict[str, Any]
) -> None:
    policy, problems = compiled(profile, facility, key)
    if problems:
        return
    for held in policy.facilities.values():
        for terms in (held.terms, *held.keys.values()):
            assert terms.formats == {Format.HCERT} or Format.HCERT not in terms.formats
            by_hand = {Format.JWS, Format.MESSAGE} <= terms.formats
            assert not (by_hand and terms.content.required_members)


@given(PROFILE)
def test_stating_the_profile_again_changes_nothing(profile: dict[str, Any]) -> None:
    policy, problems = compiled(profile, profile)
    assert problems == []
    again, plain = policy.facilities["f"].terms, policy.facilities["whole"].terms
    for name in ("formats", "algorithms", "quotas", "hours", "valid_until", "hcert", "content"):
        assert getattr(again, name) == getattr(plain, name)


def test_without_statements_the_terms_are_shared() -> None:
    profile = {"formats": ["JWS"], "algorithms": ["ES256"], "max_batch_items": 5}
    policy, problems = compiled(profile, {}, {})
    assert problems == []
    facility = policy.facilities["f"]
    assert facility.keys["k"] is facility.terms
    assert facility.terms.levels is policy.facilities["whole"].terms.levels


def test_defaults_are_strict() -> None:
    profile = {"formats": ["JWS"], "algorithms": ["ES256"], "max_batch_items": 5}
    terms = compiled(profile, {})[0].facilities["f"].terms
    assert terms.check_every == 1
    assert terms.delegation is False
    assert terms.weight == 2
    assert terms.rule("delegation") == "default.delegation"


def test_every_rule_is_narrowed_and_names_its_statement() -> None:
    profile = {
        "formats": ["HCERT", "JWS"],
        "algorithms": ["ES256", "PS256"],
        "max_batch_items": 500,
        "quotas": ["200 per second", "9 per day"],
        "priority": "high",
        "check_every": 64,
        "hcert": {"issuer": "VN", "validity_days": 365},
        "content": {"identifier_prefix": "URN:", "required_members": ["id"]},
    }
    facility = {
        "quotas": ["100 per second", "7 per hour"],
        "priority": "low",
        "hcert": {"validity_days": 30},
        "content": {"countries": ["VN"], "required_members": ["lot"]},
    }
    key = {"formats": ["HCERT"], "check_every": 1, "algorithms": ["PS256"]}
    policy, problems = compiled(profile, facility, key)
    assert problems == []
    terms = policy.facilities["f"].keys["k"]
    assert terms.formats == {"HCERT"}
    assert terms.algorithms == {"PS256"}
    assert terms.quotas == (Quota(100, 1), Quota(7, 3600), Quota(9, 86_400))
    assert terms.weight == 1
    assert terms.check_every == 1
    assert terms.hcert == HcertTerms("VN", 30 * 86_400)
    assert terms.content == ContentRules(
        countries=frozenset({"VN"}),
        identifier_prefix="URN:",
        required_members=frozenset({"id", "lot"}),
        dcc_schema=True,
        qr_level="Q",
    )
    # What an item is denied by has the path of its own statement.
    assert terms.content.paths == {
        "identifier_prefix": "profiles.p.content.identifier_prefix",
        "countries": "facilities.f.content.countries",
        "required_members": "facilities.f.content.required_members",
        "required_members.id": "profiles.p.content.required_members",
        "required_members.lot": "facilities.f.content.required_members",
    }
    assert terms.content.path("dcc_schema") == "default.content.dcc_schema"
    assert terms.rule("max_batch_items") == "profiles.p.max_batch_items"
    assert terms.rule("formats") == "facilities.f.keys.k.formats"
    assert terms.rule("content") == "facilities.f.content"
    assert terms.rule("check_every") == "facilities.f.keys.k.check_every"
