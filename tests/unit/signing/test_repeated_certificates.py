"""A repeated request for certificates gets the same bytes, whatever the policy says by then."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from signer.clock import SystemClock
from signer.config.policy_documents import load_policy
from signer.errors import CallError, Reason
from signer.model import Format, KeyName
from signer.signing.request import BatchRequest
from tests.stand_ins import key_version
from tests.unit.formats.conftest import YEAR, certify
from tests.unit.signing.stage import CLIENT, ID, Stage

LENIENT = """
roles: {operator: []}
profiles:
  certificates:
    formats: [HCERT, SHC]
    algorithms: [ES256]
    max_batch_items: 10
    hcert: {issuer: VN, validity_days: 30}
    shc: {issuer: "https://cards.example/a"}
    content: {dcc_schema: false, qr_level: L}
facilities:
  "a":
    profile: certificates
    clients: ["spiffe://x/issuer"]
    keys: {dcc: {formats: [HCERT]}, cards: {formats: [SHC]}}
"""
STRICT = LENIENT.replace("dcc_schema: false, qr_level: L", "countries: [VN], qr_level: H")
DCC, CARDS = KeyName("a", "dcc"), KeyName("a", "cards")

# No schema accepts the certificate; nothing of level H holds either of them.
NOTE = "".join(f"{number * 2654435761 % 2**32:08x}" for number in range(400))
CERTIFICATE = json.dumps({"ver": "1", "nam": {}, "dob": "", "v": [{}], "x": NOTE}).encode()
ENTRY = {"fullUrl": "resource:0", "resource": {"resourceType": "Patient"}}
BUNDLE = json.dumps(
    {"resourceType": "Bundle", "type": "collection", "entry": [ENTRY], "x": NOTE}
).encode()
ASKED = [(DCC, Format.HCERT, CERTIFICATE), (CARDS, Format.SHC, BUNDLE)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    now = int(time.time())
    private = ec.generate_private_key(ec.SECP256R1())
    der = certify(private, not_before=now - YEAR, not_after=now + YEAR)
    keys = [
        key_version(key=name, cka_id=name.key.encode(), certificate=der) for name in (DCC, CARDS)
    ]
    made = Stage(tmp_path, LENIENT, keys)
    yield made
    made.close()


def turn_to(stage: Stage, policy: str) -> None:
    file = stage.folder.parent / "policy.yaml"
    file.write_text(policy)
    stage.served.snapshot = replace(stage.served.snapshot, policy=load_policy(file))


def request(key: KeyName, wanted: Format, payload: bytes) -> BatchRequest:
    deadline = SystemClock().monotonic() + 30
    return BatchRequest(CLIENT, key, None, wanted, (payload,), deadline, ID)


@pytest.mark.parametrize(("key", "wanted", "payload"), ASKED, ids=["HCERT", "SHC"])
def test_what_was_signed_is_given_out_again_under_stricter_rules(
    stage: Stage, key: KeyName, wanted: Format, payload: bytes
) -> None:
    asked = request(key, wanted, payload)
    first = stage.sign(asked)
    assert not first.failures
    turn_to(stage, STRICT)
    again = stage.sign(asked)
    assert (again.outputs, again.failures) == (first.outputs, {})
    assert stage.hsm.signed == 1
    [failure] = stage.sign(asked._replace(request_id="")).failures.values()
    assert failure.reason is Reason.PAYLOAD_INVALID


def test_a_card_of_another_issuer_is_not_made_of_an_old_signature(stage: Stage) -> None:
    asked = request(*ASKED[1])
    stage.sign(asked)
    turn_to(stage, LENIENT.replace("cards.example/a", "cards.example/b"))
    with pytest.raises(CallError, match="the issuer in the policy, has changed") as caught:
        stage.sign(asked)
    assert caught.value.reason is Reason.REQUEST_ID_REUSED
