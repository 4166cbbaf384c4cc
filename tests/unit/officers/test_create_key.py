"""Kinds that make keys: what is refused, what officers see, what is made."""

import hashlib
from typing import Any

import pytest
from cryptography import x509

from signer.errors import CallError
from signer.keys.lifecycle import cka_id_of
from signer.officers.store import OperationState
from tests.unit.officers.opstage import CLINIC, MINISTRY, START, Stage

KEY: dict[str, Any] = {"key": CLINIC, "algorithm": "ES256", "activate": True}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"key": "clinic"}, "expected facilities/"),
        ({"key": f"{CLINIC}/versions/1"}, "is a version"),
        ({"key": "facilities/_audit/keys/checkpoint"}, "expected facilities/"),
        ({"algorithm": "ES512"}, "algorithm: must be one of ES256"),
        ({"algorithm": "es256"}, "algorithm: must be one of"),
        ({"algorithm": "RS256"}, "2048, 3072 or 4096"),
        ({"algorithm": "RS256", "bits": 1024}, "2048, 3072 or 4096"),
        ({"bits": 256}, "fixed key length"),
        ({"token": "hard"}, "token: name one of the tokens soft"),
        ({"subject": "me"}, "subject: 'me' has no equals sign"),
        ({"subject": "CN=" + "a" * 65}, "subject: CN has 65 characters, at most 64"),
        ({"subject": "CN=DCC 1,C=Vietnam"}, "subject: C=Vietnam must be two letters"),
        ({"subject": "CN=DCC {version},C=VN"}, "{version} is not replaced by anything"),
        ({"activate": False, "sign_until": int(START) + 9000}, "applies to an active key"),
        ({"sign_until": int(START) - 1}, "in the past"),
        ({"sign_until": int(START) * 1000}, "32503680000"),
        ({"sign_until": -1}, "should be at least 0"),
        ({"key": MINISTRY}, "HCERT needs its certificate first"),
        ({"bits": "2048"}, "bits: should be a whole number"),
        ({"activate": 1}, "activate: should be true or false"),
        ({"labels": []}, "labels: is not known"),
    ],
)
def test_a_key_is_refused(untouched: Stage, changed: dict[str, Any], told: str) -> None:
    [problem] = untouched.problems("create-key", **KEY | changed)
    assert told in problem


def test_everything_that_is_wrong_is_told_at_once(stage: Stage) -> None:
    wrong = {"algorithm": "ES512", "key": "clinic", "subject": "me"}
    assert len(stage.problems("create-key", **KEY | wrong)) == 3


def test_what_will_be_is_shown(stage: Stage) -> None:
    assert stage.prepare("create-key", **KEY).difference == [
        f"+ {CLINIC}, a key for ES256 on token soft",
        f"+ {CLINIC}/versions/1, ACTIVE at once, without an end",
        "  by the policy it signs JWS, MESSAGE",
    ]
    ends = stage.prepare("create-key", **KEY, sign_until=int(START) + 86_400).difference[1]
    assert ends == f"+ {CLINIC}/versions/1, ACTIVE at once, until 2026-01-06T00:00:00Z"
    other = {"key": "facilities/x/keys/k", "activate": False, "subject": "CN=k"}
    assert stage.prepare("create-key", **KEY | other).difference[1:] == [
        "+ facilities/x/keys/k/versions/1, PRE_ACTIVE: it does not sign yet",
        "+ a certification request for CN=k",
        "! facility x is not in the policy: nobody may use the key",
    ]


def test_a_key_is_made_with_its_request_and_its_evidence(stage: Stage) -> None:
    until = int(START) + 9000
    operation = stage.done("create-key", **KEY, subject="CN=clinic 1,C=VN", sign_until=until)
    version = stage.version(CLINIC)
    assert stage.states(CLINIC) == ["ACTIVE"]
    assert version.sign_until == until
    assert version.cka_id == cka_id_of(operation.id, 0)
    result = dict(operation.result or {})
    assert result["public_key_sha256"] == hashlib.sha256(version.spki).hexdigest()
    assert result["attributes"] == {"sensitive": True, "extractable": False}
    assert result["token"]["serial"] == "0001"
    request = x509.load_pem_x509_csr(str(version.request).encode())
    assert request.is_signature_valid
    assert request.subject.rfc4514_string() == "CN=clinic 1,C=VN"


@pytest.mark.parametrize(("algorithm", "bits"), [("EdDSA", 0), ("ES384", 0), ("PS256", 2048)])
def test_keys_of_every_kind(stage: Stage, algorithm: str, bits: int) -> None:
    stage.key(CLINIC, algorithm=algorithm, bits=bits)
    [problem] = stage.problems("create-key", **KEY)
    assert "new-version creates another version of it" in problem
    made = stage.done("new-version", key=CLINIC)
    assert (made.proposal.details["algorithm"], made.proposal.details["bits"]) == (algorithm, bits)
    assert stage.states(CLINIC) == ["ACTIVE", "PRE_ACTIVE"]


def test_a_version_of_no_key(stage: Stage) -> None:
    [problem] = stage.problems("new-version", key=CLINIC)
    assert "create-key creates it" in problem


def test_the_next_version_is_shown_beside_the_one_that_signs(stage: Stage) -> None:
    name = stage.key()
    assert stage.prepare("new-version", key=CLINIC, subject="CN=k").difference == [
        f"+ {CLINIC}/versions/2 on token soft, PRE_ACTIVE: it does not sign yet",
        "+ a certification request for CN=k",
        f"  {name} continues to sign for {CLINIC}",
    ]


@pytest.mark.parametrize(
    "changed",
    [
        {"algorithm": "RS256", "bits": 2048},
        {"algorithm": "none"},
        {"bits": 2048},
        {"version": f"{CLINIC}/versions/3"},
        {"version": ""},
        {"token": ""},
        {"token": "hard"},
    ],
)
def test_a_version_that_an_officer_has_written_otherwise(
    stage: Stage, changed: dict[str, Any]
) -> None:
    stage.key()
    good = {
        "key": CLINIC,
        "token": "soft",
        "version": f"{CLINIC}/versions/2",
        "algorithm": "ES256",
        "bits": 0,
    }
    with pytest.raises(CallError, match="OPERATION_REFUSED"):
        stage.put(stage.crafted("new-version", **good | changed))
    assert stage.put(stage.crafted("new-version", **good)).state is OperationState.PROPOSED


@pytest.mark.parametrize("token", ["", "hard"])
def test_a_key_that_an_officer_has_written_for_another_token(stage: Stage, token: str) -> None:
    with pytest.raises(CallError, match="token: name one of the tokens soft"):
        stage.put(stage.crafted("create-key", **KEY | {"token": token}))


def test_of_two_proposals_for_one_version_the_second_is_refused(stage: Stage) -> None:
    stage.key()
    first, second = (stage.propose("new-version", key=CLINIC).id for _ in range(2))
    stage.approve(first)
    stage.approve(second)
    refused = stage.operation(second)
    assert refused.state is OperationState.FAILED
    assert "the next version" in refused.note
    assert stage.states(CLINIC) == ["ACTIVE", "PRE_ACTIVE"]
    assert len(stage.token.keys) == 2


def test_a_token_without_room_is_told_and_tried_again(stage: Stage) -> None:
    stage.token.room = 0
    operation = stage.do("create-key", **KEY)
    assert operation.state is OperationState.FAILED
    assert "the token is full" in operation.note
    stage.token.room = 1
    stage.proposals.retry(operation.proposal.proposer, operation.id)
    assert stage.operation(operation.id).state is OperationState.DONE
    assert stage.states(CLINIC) == ["ACTIVE"]
