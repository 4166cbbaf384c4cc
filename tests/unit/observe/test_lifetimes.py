"""Which versions are counted, and what of them is exported: a share for each group."""

from dataclasses import replace
from typing import Any

from signer.key_index import KeyIndex
from signer.model import KeyName, KeyState, KeyVersion
from signer.observe.gauges import lifetime_readings
from signer.observe.lifetimes import lifetimes
from signer.policy.compile import compile_policy
from signer.policy.lifetime import VersionCharge
from signer.policy.usage import Usage
from signer.signing.request import Snapshot
from tests.stand_ins import key_version

NOW = 1_000_000.0
PROFILE: dict[str, Any] = {"formats": ["JWS"], "algorithms": ["ES256"], "max_batch_items": 5}
POLICY = compile_policy(
    {
        "groups": {"01": {"name": "Ha Noi"}},
        "profiles": {"p": PROFILE},
        "facilities": {
            "a": {"profile": "p", "group": "01", "lifetime_signatures": 100},
            "b": {"profile": "p", "group": "01", "keys": {"k": {"lifetime_signatures": 10}}},
            "c": {"profile": "p", "lifetime_signatures": 1000},
        },
    },
    "",
    [],
)


def version(facility: str, key: str = "k", number: int = 1, **changes: Any) -> KeyVersion:
    name = KeyName(facility, key)
    return replace(key_version(key=name, number=number, activate_at=NOW - 1), **changes)


def test_active_versions_with_a_bound_are_counted_and_the_most_used_one_is_exported() -> None:
    usage = Usage()
    for facility, key, number, items in [
        ("a", "k", 1, 50),
        ("a", "k", 2, 99),
        ("b", "k", 1, 9),
        ("b", "free", 1, 7),
        ("d", "k", 1, 7),
    ]:
        usage.charge(facility, (), items, NOW, VersionCharge(key, number, items, None))
    versions = [
        version("a"),
        version("a", number=2, state=KeyState.DEACTIVATED),
        version("b"),
        version("b", "free"),
        version("c"),
        version("d"),
    ]
    uses = list(lifetimes(Snapshot(POLICY, KeyIndex(versions)), usage, NOW))
    assert [(use.version.name, use.used, use.limit) for use in uses] == [
        ("facilities/a/keys/k/versions/1", 50, 100),
        ("facilities/b/keys/k/versions/1", 9, 10),
        ("facilities/c/keys/k/versions/1", 0, 1000),
    ]
    assert lifetime_readings(uses) == {"signer_key_lifetime_used_ratio": {("01",): 0.9, ("",): 0.0}}
    assert str(uses[1]) == (
        "facilities/b/keys/k/versions/1 has used 90 % of its lifetime, 9 of 10 signatures:"
        " rotate its key"
    )
    assert lifetime_readings([]) == {"signer_key_lifetime_used_ratio": {}}
