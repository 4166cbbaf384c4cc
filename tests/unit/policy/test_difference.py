"""What officers read before they approve a policy: everything that a rule comes to."""

import copy
from dataclasses import fields
from typing import Any

import pytest

from signer.policy.difference import difference
from signer.policy.document import Rules
from signer.policy.narrow import RULES
from signer.policy.rules import Terms
from tests.unit.policy.test_decide import compiled

AUDITOR, CLINIC, NEW = (f"spiffe://signer.example/{n}" for n in ("auditor", "clinic", "new"))


def document() -> dict[str, Any]:
    """A policy of which a test changes one thing."""
    return {
        "roles": {"auditor": [AUDITOR]},
        "denied_certificates": ["0a"],
        "groups": {"01": {"name": "Ha Noi", "clients": []}},
        "profiles": {
            "clinic": {
                "formats": ["JWS", "MESSAGE"],
                "algorithms": ["ES256", "EdDSA"],
                "max_batch_items": 500,
                "quotas": ["200 per second"],
                "check_every": 8,
            },
            "ministry": {
                "formats": ["HCERT"],
                "algorithms": ["ES256"],
                "max_batch_items": 10,
                "hcert": {"issuer": "VN", "validity_days": 365},
            },
        },
        "facilities": {
            "f": {
                "profile": "clinic",
                "group": "01",
                "clients": [CLINIC],
                "keys": {"plain": {"formats": ["MESSAGE"]}},
            },
            "moh": {"profile": "ministry", "clients": [CLINIC]},
        },
    }


def changed(path: str, value: Any) -> list[str]:
    """What differs when one place of the document has another value; None takes it away."""
    before, after = document(), document()
    *way, last = path.split("/")
    place = after
    for name in way:
        place = place.setdefault(name, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    return difference(compiled(before), compiled(after))


def test_nothing_differs_from_itself() -> None:
    assert difference(compiled(document()), compiled(document())) == []


@pytest.mark.parametrize(
    ("path", "value", "lines"),
    [
        ("roles/auditor", [], [f"- auditor {AUDITOR}"]),
        ("roles/operator", [NEW], [f"+ operator {NEW}"]),
        ("denied_certificates", ["0b"], ["- denied certificate a", "+ denied certificate b"]),
        ("groups/02", {"name": "Hue", "clients": []}, ["+ group 02, named Hue"]),
        (
            "groups/02",
            {"name": "Hue", "clients": [NEW]},
            ["+ group 02, named Hue", f"+ client of group 02 {NEW}"],
        ),
        ("groups/01/name", "Hanoi", ["~ group 01: name Ha Noi becomes Hanoi"]),
        ("groups/01/clients", [NEW], [f"+ client of group 01 {NEW}"]),
        (
            "facilities/f/clients",
            [NEW],
            [f"- client of facility f {CLINIC}", f"+ client of facility f {NEW}"],
        ),
        ("facilities/moh", None, ["- facility moh"]),
        (
            "facilities/g",
            {"profile": "clinic", "group": "01", "keys": {"k": {"algorithms": ["EdDSA"]}}},
            [
                "+ facility g, profile clinic, group 01, for no client",
                "+ facility g: formats JWS, MESSAGE",
                "+ facility g: algorithms ES256, EdDSA",
                "+ facility g: max_batch_items 500",
                "+ facility g: quotas 200 per second",
                "+ facility g: lifetime_signatures none",
                "+ facility g: hours none",
                "+ facility g: valid_from none",
                "+ facility g: valid_until none",
                "+ facility g: delegation no",
                "+ facility g: priority normal",
                "+ facility g: check_every 8",
                "+ facility g: storage token",
                "+ facility g: hcert none",
                "+ facility g: shc none",
                "+ facility g: timestamp none",
                "+ facility g: cosigning none",
                "+ facility g: content none",
                "+ facility g, key k: algorithms EdDSA",
            ],
        ),
        ("facilities/f/max_batch_items", 7, None),
        ("facilities/f/group", None, None),
        ("profiles/ministry/hcert/validity_days", 30, None),
        ("profiles/ministry/content", {"countries": ["VN"]}, None),
        ("profiles/clinic/check_every", 1, None),
        ("profiles/clinic/priority", "high", None),
        ("profiles/clinic/delegation", True, None),
        ("profiles/clinic/quotas", ["10 per day"], None),
        ("profiles/clinic/formats", ["JWS", "MESSAGE", "COSE_SIGN1"], None),
        ("profiles/clinic/algorithms", ["ES256"], None),
        ("facilities/f/valid_until", "2030-01-01T00:00:00Z", None),
        ("facilities/f/valid_from", "2020-01-01T00:00:00Z", None),
        (
            "facilities/f/hours",
            {
                "time_zone": "Asia/Ho_Chi_Minh",
                "open": [{"days": "mon", "from": "06:00", "to": "20:00"}],
            },
            None,
        ),
        ("facilities/f/keys/plain/max_batch_items", 3, None),
        (
            "facilities/f/keys/other",
            {"formats": ["JWS"]},
            ["~ key f/other: formats JWS, MESSAGE becomes JWS"],
        ),
        ("facilities/f/keys/plain", None, ["~ key f/plain: formats MESSAGE becomes JWS, MESSAGE"]),
    ],
)
def test_every_change_is_listed(path: str, value: Any, lines: list[str] | None) -> None:
    changes = changed(path, value)
    assert changes
    if lines is not None:
        assert changes == lines


def test_a_change_of_a_profile_is_listed_for_each_of_its_facilities() -> None:
    lines = changed("profiles/clinic/max_batch_items", 100)
    assert lines == [
        "~ facility f: max_batch_items 500 becomes 100",
        "~ key f/plain: max_batch_items 500 becomes 100",
    ]


def test_the_same_values_written_differently_are_equal() -> None:
    after = copy.deepcopy(document())
    after["facilities"]["f"]["max_batch_items"] = 500
    after["denied_certificates"] = ["00:0A"]
    assert difference(compiled(document()), compiled(after)) == []


def test_the_reverse_change_has_as_many_lines() -> None:
    after = document()
    after["facilities"]["f"]["group"] = None
    del after["facilities"]["f"]["group"]
    there = difference(compiled(document()), compiled(after))
    back = difference(compiled(after), compiled(document()))
    assert there
    assert len(there) == len(back)


def test_a_new_facility_names_the_clients_of_its_group_and_equal_rules_once() -> None:
    before, after = document(), document()
    for one in (before, after):
        one["groups"]["01"]["clients"] = [NEW]
    rules = {
        "profile": "clinic",
        "group": "01",
        "quotas": ["100 per minute", "5000 per day"],
        "max_batch_items": 50,
        "hours": {
            "time_zone": "Asia/Ho_Chi_Minh",
            "open": [{"days": "mon-fri", "from": "07:00", "to": "17:00"}],
        },
    }
    after["profiles"]["clinic"]["delegation"] = before["profiles"]["clinic"]["delegation"] = True
    after["facilities"] |= {"g": rules, "h": rules | {"clients": [CLINIC], "group": "01"}}
    after["facilities"]["i"] = rules | {"delegation": False}
    lines = difference(compiled(before), compiled(after))
    assert f"+ facility g, profile clinic, group 01, for {NEW}" in lines
    assert "+ facility g: quotas 200 per second, 100 per minute, 5000 per day" in lines
    assert "+ facility g: max_batch_items 50" in lines
    assert "+ facility g: hours mon-fri 07:00-17:00 Asia/Ho_Chi_Minh" in lines
    both = f"{CLINIC}, {NEW}"
    assert f"+ facility h, profile clinic, group 01, for {both}, rules as facility g" in lines
    assert "+ facility i, profile clinic, group 01, for no client" in lines
    assert "+ facility i: delegation no" in lines
    assert len(lines) == 3 + 2 * len(RULES)


def test_who_signs_by_a_group_is_named_where_a_facility_begins_to_delegate() -> None:
    before = document()
    before["groups"]["01"]["clients"] = [NEW]
    after = copy.deepcopy(before)
    after["profiles"]["clinic"]["delegation"] = True
    assert difference(compiled(before), compiled(after)) == [
        f"+ client of facility f, as its group's {NEW}",
        "~ facility f: delegation no becomes yes",
        "~ key f/plain: delegation no becomes yes",
    ]


def test_every_rule_has_a_row() -> None:
    """What a document may state is what is narrowed, shown and compared."""
    names = [rule.name for rule in RULES]
    assert names == list(Rules.model_fields)
    others = {"facility", "group", "levels", "weight"}
    assert set(names) == {field.name for field in fields(Terms)} - others
