"""Nothing under dual control is done by fewer officers, over other bytes, or twice."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from signer.client import SignerClientError, sign_operation
from signer.officers.approval import parse
from tests.commands import signer
from tests.integration import edge
from tests.integration.officers import Office

NEEDED = 3
"""How many must sign create-key here; all else needs two."""


def principal(name: str) -> str:
    return f"spiffe://dev.signer.example/{name}"


@pytest.fixture(scope="module")
def made(appliance: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An appliance of this module's own, on which three officers make a key."""
    config = {"operations": {"kinds": {"create-key": NEEDED}}}
    with edge.own(appliance, tmp_path_factory.mktemp("approvals"), config=config) as one:
        yield one


@pytest.fixture(scope="module")
def office(made: Any) -> Office:
    """Officers a and b, and since their first operation c, who has an Ed25519 key, and d, RSA."""
    office = Office(made.dev)
    join(office, made, "officer-c", ed25519.Ed25519PrivateKey.generate())
    join(office, made, "officer-d", rsa.generate_private_key(65537, 2048))
    add = [office.dev["clients"][name]["officer"] for name in ("officer-c", "officer-d")]
    done = office.do("officers", add=add)
    assert done.result == {"officers": [principal(f"officer-{name}") for name in "abcd"]}
    return office


def join(office: Office, made: Any, name: str, key: Any) -> None:
    """Gives somebody a TLS certificate, and one for operations with a key of another kind."""
    authority = edge.client_authority(made)
    tls = edge.issue(made.dir, authority, name, principal(name))
    certificate = authority.issue(
        key.public_key(),
        x509.Name.from_rfc4514_string(f"CN={name}"),
        ExtendedKeyUsageOID.CLIENT_AUTH,
        [x509.UniformResourceIdentifier(principal(name))],
        1,
    )
    office.dev["clients"][name] = {
        "cert": str(tls.certificate),
        "key": str(tls.key),
        "officer": certificate.public_bytes(Encoding.PEM).decode(),
    }
    office.keys[name] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def refused(office: Office, name: str, method: str, *arguments: Any) -> tuple[str, str]:
    """Expects a call of an officer to be refused; the reason and the text."""
    with office.client(name) as client, pytest.raises(SignerClientError) as caught:
        getattr(client.operations, method)(*arguments)
    return caught.value.reason, caught.value.message


def signature(office: Office, name: str, content: bytes) -> bytes:
    return sign_operation(content, office.keys[name])


def new_key(**changes: Any) -> dict[str, Any]:
    name = f"facilities/01-001/keys/k-{uuid.uuid4().hex[:12]}"
    return {"key": name, "algorithm": "ES256", "activate": True, **changes}


def exists(office: Office, key: str) -> bool:
    with office.client("officer-a") as client:
        return any(each.name == key for each in client.list_keys("facilities/01-001"))


def test_three_officers_of_three_kinds_of_key_make_what_they_approved(office: Office) -> None:
    wanted = new_key(algorithm="RS256", bits=3072)
    proposed = office.propose("create-key", by="officer-c", **wanted)
    assert (proposed.state, proposed.officers) == ("PROPOSED", NEEDED)
    assert any(line.startswith(f"+ {wanted['key']}") for line in office.get(proposed.id).difference)
    assert office.approve(proposed.id, by="officer-d").state == "PROPOSED"
    assert not exists(office, wanted["key"]), "two of three made it"
    assert office.approve(proposed.id, by="officer-a").state in ("APPROVED", "EXECUTING", "DONE")
    done = office.ended(proposed.id)
    assert done.state == "DONE", done.note
    assert [each.officer for each in done.signatures] == [
        principal(f"officer-{name}") for name in "cda"
    ]
    version = office.versions(wanted["key"])[1]
    assert (version.algorithm, version.state) == ("RS256", "ACTIVE")
    public_key = load_der_public_key(version.public_key)
    assert isinstance(public_key, RSAPublicKey)
    assert public_key.key_size == wanted["bits"]
    assert done.result is not None
    assert done.result["jwk_thumbprint"] == version.jwk_thumbprint
    details = parse(done.content).details
    assert {name: details[name] for name in wanted} == wanted
    with office.client("issuer") as client:
        [item] = client.sign_batch(wanted["key"], "MESSAGE", [b"m"])
    assert (item.error, item.key_version) == (None, version.name)


def test_a_signature_counts_for_one_officer_and_one_operation(office: Office) -> None:
    wanted = new_key()
    proposed = office.propose("create-key", **wanted)
    content = office.get(proposed.id).content
    twin = office.get(office.propose("create-key", **wanted).id).content
    assert twin != content
    forged = {
        "another officer's": signature(office, "officer-c", content),
        "over other bytes": signature(office, "officer-b", content + b"\n"),
        "of a twin": signature(office, "officer-b", twin),
        "the proposer's own": office.get(proposed.id).signatures[0].signature,
        "noise": b"\x30\x06\x02\x01\x01\x02\x01\x01",
    }
    for name, bad in forged.items():
        reason, text = refused(office, "officer-b", "approve", proposed.id, bad)
        assert reason == "APPROVAL_INVALID", name
        assert "is not by spiffe://dev.signer.example/officer-b" in text, name
    told = office.get(proposed.id)
    assert (told.state, len(told.signatures)) == ("PROPOSED", 1)


def test_who_is_no_officer_any_more_neither_calls_nor_counts(office: Office) -> None:
    """The last of the tests that need officer d: he proposed and signed before he left."""
    proposed_by_d, signed_by_d = new_key(), new_key()
    first = office.propose("create-key", by="officer-d", **proposed_by_d)
    second = office.propose("create-key", **signed_by_d)
    office.approve(second.id, by="officer-d")
    office.do("officers", remove=[principal("officer-d")])
    reason, _ = refused(office, "officer-d", "get", first.id)
    assert reason == "PEER_UNKNOWN"

    assert office.approve(first.id, by="officer-a").state == "PROPOSED"
    assert office.approve(first.id, by="officer-b").state == "PROPOSED"
    office.approve(first.id, by="officer-c")
    told = office.ended(first.id)
    assert (told.state, "has not validly signed" in told.note) == ("FAILED", True)

    assert office.approve(second.id, by="officer-b").state == "PROPOSED", "d counts no more"
    assert not exists(office, signed_by_d["key"])
    office.approve(second.id, by="officer-c")
    assert office.ended(second.id).state == "DONE"
    assert exists(office, signed_by_d["key"])
    assert not exists(office, proposed_by_d["key"])

    [problem] = office.problems("officers", remove=[principal("officer-c")])
    assert "2 officers are left; operations need 3" in problem


def test_the_log_proves_all_of_it_offline(office: Office, made: Any) -> None:
    with office.client("officer-a") as client:
        executed = [each for each in client.operations.list() if each.state in ("DONE", "FAILED")]
        proposed = sum(1 for _ in client.operations.list())
    report = verified(made.dir / "audit")
    assert report["problems"] == []
    assert report["whole"] is True
    done = sum(each.state == "DONE" for each in executed)
    assert done >= 4
    assert report["operations"] >= done
    assert report["kinds"]["proposal"] == proposed
    assert report["officers"] == [principal(f"officer-{name}") for name in "abc"]


def verified(folder: Path) -> dict[str, Any]:
    """What `signer audit verify` says, with nothing but the log and its public key."""
    key = folder / "audit.pub.pem"
    done = signer("audit", "verify", "--dir", folder, "--key", key, "--json")
    assert done.code == 0, done
    report: dict[str, Any] = json.loads(done.out)
    return report
