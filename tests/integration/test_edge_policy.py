"""The policy in action: whose key, what content, how much, when, which version."""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from signer.algorithms import Algorithm
from signer.config.models import load_config
from signer.hsm.front.admin import open_admin
from signer.keys.lifecycle import NewKey, create_key
from signer.keys.registry import Registry
from signer.model import KeyName, KeyState, KeyVersion
from signer.tools.dev import key_plan as plan
from signer.v1 import keys_pb2, signing_pb2
from tests.integration import edge, outputs
from tests.integration.test_edge_batches import dcc

DAY = 86_400
OTHER, PROVINCE = plan.principal("other"), plan.principal("province-01")
STATES = KeyName("01-001", "states")
UNLISTED = KeyName("moh", "unlisted")
NEVER_ACTIVE: dict[int, dict[str, Any]] = {
    1: {"state": KeyState.PRE_ACTIVE},
    2: {"state": KeyState.SUSPENDED},
    3: {"state": KeyState.DEACTIVATED},
    4: {"state": KeyState.COMPROMISED},
    5: {"state": KeyState.DESTROY_SCHEDULED},
    6: {"state": KeyState.DESTROYED},
    7: {"state": KeyState.ACTIVE, "activate_at": None},
    8: {"state": KeyState.ACTIVE, "activate_at": 4e9},
    9: {"state": KeyState.ACTIVE, "sign_until": 1e9},
}
SHOWN = {7: KeyState.PRE_ACTIVE, 8: KeyState.PRE_ACTIVE, 9: KeyState.DEACTIVATED}


def away_from_midnight() -> None:
    """Windows of a day end at midnight UTC: what is counted here must lie in one of them."""
    left = DAY - time.time() % DAY
    if left < 60:
        time.sleep(left + 1)


def day_after_tomorrow() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)


def change(policy: dict[str, Any]) -> None:
    issuer = plan.principal("issuer")
    records = policy["profiles"]["records"]
    policy["profiles"]["delegating"] = records | {"delegation": True}
    policy["groups"]["01"]["clients"] = [PROVINCE]
    opens = f"{day_after_tomorrow():%a}".lower()
    hours = {"time_zone": "UTC", "open": [{"days": opens, "from": "00:00", "to": "24:00"}]}
    policy["facilities"]["01-002"] |= {"profile": "delegating", "clients": [OTHER]}
    policy["facilities"]["01-001"]["keys"] |= {"wrong": {"algorithms": ["ES256"]}}
    changes: dict[str, dict[str, Any]] = {
        "closed": {"hours": hours},
        "past": {"valid_until": "2020-01-01T00:00:00+07:00"},
        "future": {"valid_from": "2100-01-01T00:00:00+07:00"},
        "small": {"max_batch_items": 3},
        "daily": {"quotas": ["10 per day"]},
        "content": {"formats": ["JWS"], "content": {"required_members": ["id", "date"]}},
    }
    policy["facilities"] |= {
        name: {"profile": "records", "group": "01", "clients": [issuer]} | rules
        for name, rules in changes.items()
    }
    policy["profiles"]["ministry"]["content"] = {
        "countries": ["VN"],
        "issuers": ["MOH"],
        "certificate_types": ["v"],
        "identifier_prefix": "URN:UVCI:01:VN:",
        "future_dates": False,
    }


def prepare(made: Any) -> None:
    """Makes keys for the facilities above, and versions in every state."""
    config = load_config(made.dir / "signer.yaml")
    names = [KeyName(name, "records") for name in ("small", "daily", "content")]
    new = [NewKey(name, Algorithm.ES256) for name in names]
    new.append(NewKey(KeyName("01-001", "wrong"), Algorithm.EDDSA))
    new.append(NewKey(UNLISTED, Algorithm.ES256))
    with Registry.open(config.registry) as registry:
        with open_admin(config.tokens[0], config.state) as admin:
            for wanted in new:
                create_key(registry, admin, wanted, time.time())
        [sample] = registry.versions(names[0])
        for number, changes in NEVER_ACTIVE.items():
            registry.add_version(unmade(sample, number, changes))


def unmade(sample: KeyVersion, number: int, changes: dict[str, Any]) -> KeyVersion:
    """A version that no token has: nothing may ask for its signature."""
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return replace(
        sample,
        key=STATES,
        number=number,
        spki=spki,
        cka_id=bytes([number]) * 16,
        thumbprint=f"none-{number}",
        kid=bytes([number]) * 8,
        **changes,
    )


@pytest.fixture(scope="module")
def policed(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("policed")
    away_from_midnight()
    with edge.own(
        appliance, folder, policy=change, prepare=prepare, config={"reflection": False}
    ) as made:
        yield made


@pytest.fixture(scope="module")
def clients(policed: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The issuer, the client of 01-002, and that of the province."""
    folder, authority = tmp_path_factory.mktemp("clients"), edge.client_authority(policed)
    stubs = {"issuer": edge.connect(policed.dev), "auditor": edge.connect(policed.dev, "auditor")}
    for name, principal in (("other", OTHER), ("province", PROVINCE)):
        issued = edge.issue(folder, authority, name, principal)
        stubs[name] = edge.connect_with(policed.dev, issued.certificate, issued.key)
    yield stubs
    for each in stubs.values():
        each.channel.close()


def denied(stubs: edge.Stubs, **changes: Any) -> edge.Refusal:
    return edge.refused(lambda: stubs.sign(**changes), "POLICY_DENIED")


def test_the_client_of_another_facility_cannot_tell_what_exists(clients: dict[str, Any]) -> None:
    other = clients["other"]
    names = (
        edge.RECORDS,
        "facilities/01-001/keys/none",
        "facilities/nowhere/keys/records",
        f"{edge.RECORDS}/versions/1",
        f"{edge.RECORDS}/versions/99",
        "facilities/moh/keys/digest",
        "facilities/closed/keys/records",
    )
    answers = {str(denied(other, key=name)) for name in names}
    answers |= {str(denied(other, key=name, payloads=[])) for name in names}
    answers |= {str(denied(other, key=name, format="FORMAT_HCERT")) for name in names}
    assert len(answers) == 1
    assert "default.deny" in answers.pop()
    shown = {
        str(edge.refused(partial(get_key, other, name))) for name in names if "versions" not in name
    }
    assert len(shown) == 1


def get_key(stubs: edge.Stubs, name: str) -> Any:
    return stubs.keys.GetKey(keys_pb2.GetKeyRequest(name=name), timeout=edge.SECONDS).key


def test_a_province_signs_where_it_is_delegated_and_only_there(clients: dict[str, Any]) -> None:
    province = clients["province"]
    assert len(province.sign(key="facilities/01-002/keys/records").signatures) == 1
    assert denied(province, key=edge.RECORDS).metadata == {"rule": "default.deny"}
    assert denied(clients["issuer"], key="facilities/01-002/keys/records")


def test_clients_see_the_keys_they_may_use(clients: dict[str, Any]) -> None:
    def names(client: str) -> list[str]:
        request = keys_pb2.ListKeysRequest()
        return [
            key.name for key in clients[client].keys.ListKeys(request, timeout=edge.SECONDS).keys
        ]

    assert names("other") == names("province") == ["facilities/01-002/keys/records"]
    assert set(names("auditor")) > set(names("issuer")) > {edge.RECORDS, str(STATES)}
    assert "facilities/01-002/keys/records" not in names("issuer")


@pytest.mark.parametrize("number", NEVER_ACTIVE)
def test_a_version_that_is_not_active(clients: dict[str, Any], number: int) -> None:
    refusal = edge.refused(
        lambda: clients["issuer"].sign(key=f"{STATES}/versions/{number}"), "KEY_VERSION_NOT_ACTIVE"
    )
    state = SHOWN.get(number, NEVER_ACTIVE[number]["state"])
    assert refusal.message == f"{STATES}/versions/{number} is {state}"
    request = keys_pb2.GetKeyVersionRequest(name=f"{STATES}/versions/{number}")
    shown = clients["issuer"].keys.GetKeyVersion(request, timeout=edge.SECONDS).key_version
    assert keys_pb2.KeyState.Name(shown.state) == f"KEY_STATE_{state}"


def test_a_key_without_an_active_version(clients: dict[str, Any]) -> None:
    edge.refused(lambda: clients["issuer"].sign(key=str(STATES)), "KEY_VERSION_NOT_ACTIVE")
    assert not get_key(clients["issuer"], str(STATES)).HasField("primary")


def test_an_algorithm_that_the_policy_does_not_allow(clients: dict[str, Any]) -> None:
    refusal = denied(clients["issuer"], key="facilities/01-001/keys/wrong")
    assert refusal.metadata == {"rule": "facilities.01-001.keys.wrong.algorithms"}


def test_the_batch_limit_of_a_facility(clients: dict[str, Any]) -> None:
    key = "facilities/small/keys/records"
    assert len(clients["issuer"].sign([b"{}"] * 3, key=key).signatures) == 3
    refusal = edge.refused(lambda: clients["issuer"].sign([b"{}"] * 4, key=key), "FIELD_INVALID")
    assert refusal.fields == ("payloads",)
    assert get_key(clients["issuer"], key).max_batch_items == 3


# --- time -------------------------------------------------------------------------------------


def test_closed_hours_say_when_they_end(clients: dict[str, Any]) -> None:
    # The key does not exist: that is not looked at when nobody may sign now.
    before = time.time()
    refusal = edge.refused(
        lambda: clients["issuer"].sign(key="facilities/closed/keys/records"), "CLOSED_HOURS"
    )
    assert refusal.metadata == {"rule": "facilities.closed.hours"}
    opening = day_after_tomorrow()
    assert f"{opening:%Y-%m-%dT%H:%M:%S}+00:00 (UTC)" in refusal.message
    assert refusal.retry_after is not None
    asked = opening.timestamp() - refusal.retry_after  # the hint is in whole milliseconds
    assert before - 0.001 <= asked <= time.time() + 0.001


@pytest.mark.parametrize(("facility", "rule"), [("past", "valid_until"), ("future", "valid_from")])
def test_outside_of_its_validity_a_facility_signs_nothing(
    clients: dict[str, Any], facility: str, rule: str
) -> None:
    refusal = denied(clients["issuer"], key=f"facilities/{facility}/keys/records")
    assert refusal.metadata == {"rule": f"facilities.{facility}.{rule}"}
    assert refusal.retry_after is None


# --- how much ---------------------------------------------------------------------------------


def test_a_quota_holds_for_whole_batches(clients: dict[str, Any], policed: Any) -> None:
    issuer, key = clients["issuer"], "facilities/daily/keys/records"

    def left() -> int:
        _per_second, quota = get_key(issuer, key).quotas
        assert (quota.limit, quota.window_seconds) == (10, DAY)
        return int(quota.remaining)

    def refusal(items: int) -> edge.Refusal:
        found = edge.refused(lambda: issuer.sign([b"{}"] * items, key=key), "QUOTA_EXCEEDED")
        still, midnight = left(), datetime.now(UTC).date() + timedelta(days=1)
        assert found.metadata == {
            "rule": "facilities.daily.quotas",
            "window": "day",
            "limit": "10",
            "used": str(10 - still),
            "left": str(still),
            "resets": f"{midnight}T00:00:00Z",
        }
        assert f"{10 - still} are used and {still} left until {midnight}T" in found.message
        return found

    assert left() == 10
    edge.refused(lambda: issuer.sign([b"{}"] * 11, key=key), "FIELD_INVALID")
    assert left() == 10
    assert not issuer.sign([b"{}"] * 6, key=key).failures
    assert left() == 4
    used_up = refusal(5)
    assert used_up.retry_after is not None
    assert 0 < used_up.retry_after <= DAY
    assert left() == 4
    # What does not parse is not signed, and costs the same.
    assert set(issuer.sign([b"{}", b"bad"], key=key).failures) == {1}
    assert left() == 2
    assert set(issuer.sign([b"bad", b"bad"], key=key).failures) == {0, 1}
    assert left() == 0
    refusal(1)
    _, text = policed.get("/metrics")
    assert 'signer_quota_rejections_total{group="01",window="day"} 2.0' in text


# --- content ----------------------------------------------------------------------------------


def test_what_breaks_a_content_rule_fails_alone(clients: dict[str, Any], policed: Any) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, ""),
        ({"co": "FR"}, "countries"),
        ({"is": "somebody"}, "issuers"),
        ({"ci": "URN:UVCI:01:FR:0000"}, "identifier_prefix"),
        ({"dt": "2999-01-01"}, "future_dates"),
        ({}, ""),
    ]
    payloads = [cbor2.dumps(dcc(entry=changes)) for changes, _ in cases]
    recovered = {"tg": "840539006", "fr": "2022-01-01", "df": "2022-01-12", "du": "2022-06-30"}
    recovered |= {"co": "VN", "is": "MOH", "ci": "URN:UVCI:01:VN:0000"}
    other = {name: value for name, value in dcc(r=[recovered]).items() if name != "v"}
    payloads.append(cbor2.dumps(other))
    rules = [rule for _, rule in cases] + ["certificate_types"]
    response = clients["issuer"].sign(
        payloads, key="facilities/moh/keys/dcc", format="FORMAT_HCERT"
    )
    key = policed.key("moh/dcc")
    for index, (payload, rule) in enumerate(zip(payloads, rules, strict=True)):
        if not rule:
            outputs.check_hcert(key, response.signatures[index])
            continue
        refusal = edge.read(response.failures[index])
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "CONTENT_DENIED"), payload
        assert f"content rule {rule}:" in refusal.message
        assert refusal.metadata == {"rule": f"profiles.ministry.content.{rule}"}
    assert set(response.failures) == {index for index, rule in enumerate(rules) if rule}


FORMATS = (
    "DIGEST",
    "MESSAGE",
    "JWS",
    "COSE_SIGN1",
    "SHC",
    "CMS",
    "CMS_DIGEST",
    "TIMESTAMP",
    "HCERT",
)


@pytest.mark.parametrize("name", FORMATS)
def test_a_ministry_key_that_is_not_listed_signs_nothing(
    clients: dict[str, Any], name: str
) -> None:
    refusal = denied(clients["issuer"], key=str(UNLISTED), format=f"FORMAT_{name}")
    assert refusal.metadata == {"rule": "facilities.moh.keys"}
    assert list(get_key(clients["issuer"], str(UNLISTED)).formats) == []


@pytest.mark.parametrize("name", FORMATS[:-1])
def test_a_key_for_hcert_signs_nothing_else(clients: dict[str, Any], name: str) -> None:
    # In COSE_SIGN1 it would sign claims of the caller's own: an HCERT past all rules.
    claims = cbor2.dumps({1: "XX", 4: 4_000_000_000, 6: 0, -260: {1: {"ver": "1.3.0"}}})
    for key in ("facilities/moh/keys/dcc", "facilities/moh/keys/dcc-rsa"):
        denied(clients["issuer"], key=key, payloads=[claims], format=f"FORMAT_{name}")
        shown = [signing_pb2.Format.Name(one) for one in get_key(clients["issuer"], key).formats]
        assert shown == ["FORMAT_HCERT"]


def test_required_members_of_a_record(clients: dict[str, Any]) -> None:
    payloads = [b'{"id":1,"date":2,"more":3}', b'{"id":1}', b'{"x":{"id":1,"date":2}}', b"[]"]
    response = clients["issuer"].sign(payloads, key="facilities/content/keys/records")
    reasons = {index: edge.read(status) for index, status in response.failures.items()}
    assert {index: refusal.reason for index, refusal in reasons.items()} == {
        1: "CONTENT_DENIED",
        2: "CONTENT_DENIED",
        3: "PAYLOAD_INVALID",
    }
    assert "date is missing" in reasons[1].message
    rule = "facilities.content.content.required_members"
    assert reasons[1].metadata == {"rule": rule}


# --- certificates -----------------------------------------------------------------------------


def test_a_denied_certificate_is_refused_and_its_principal_is_not(
    policed: Any, clients: dict[str, Any], tmp_path: Path
) -> None:
    authority = edge.client_authority(policed)
    stolen, good = (
        edge.issue(tmp_path, authority, name, plan.principal("issuer")) for name in ("one", "two")
    )
    with edge.connect_with(policed.dev, stolen.certificate, stolen.key) as stubs:
        assert len(stubs.sign().signatures) == 1
        policed.edit_policy(lambda policy: deny(policy, stolen.serial))
        with edge.connect(policed.dev, "operator") as operator:
            assert edge.reload(operator).policy_changed
        refusal = edge.refused(stubs.sign)
    assert (refusal.code, refusal.reason) == ("UNAUTHENTICATED", "PEER_UNKNOWN")
    assert "deny list" in refusal.message
    with edge.connect_with(policed.dev, good.certificate, good.key) as stubs:
        assert len(stubs.sign().signatures) == 1
    assert len(clients["issuer"].sign().signatures) == 1


def deny(policy: dict[str, Any], serial: int) -> None:
    digits = f"{serial:x}"
    digits = digits.zfill(len(digits) + len(digits) % 2)
    policy["denied_certificates"] = [":".join(digits[i : i + 2] for i in range(0, len(digits), 2))]


def test_reflection_may_be_off(clients: dict[str, Any]) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(clients["issuer"].channel)
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    answer = stub.ServerReflectionInfo(asked, timeout=edge.SECONDS)
    assert edge.refused_by_grpc(lambda: next(answer))[0] == "UNIMPLEMENTED"
