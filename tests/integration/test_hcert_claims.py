"""Health links and certificates by the policy's schema, on a real appliance."""

import base64
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.appliances import Appliance, serving
from tests.commands import signer
from tests.integration import edge
from tests.integration.test_audit_verify import verified
from tests.integration.test_cosigning import certificate

DCC, LINKS = "facilities/moh/keys/dcc", "facilities/moh/keys/dcc-rsa"
HOSTS = ["records.example.vn"]
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["n", "dt"],
    "properties": {"n": {"type": "string"}, "dt": {"type": "string", "format": "date"}},
}
DVC = {"n": "Nguyễn Văn Mẫu", "dt": "2021-06-11"}


def with_links(policy: dict[str, Any]) -> None:
    moh = policy["facilities"]["moh"]["keys"]
    content = policy["profiles"]["ministry"].setdefault("content", {})
    content |= {"claims": ["DCC", "VHL"], "link_hosts": HOSTS}
    moh["dcc"]["content"] = {"claims": ["DCC"]}
    moh["dcc-rsa"]["content"] = {"claims": ["VHL"]}


def with_schema(policy: dict[str, Any]) -> None:
    policy["schemas"] = {"dvc": SCHEMA}
    policy["profiles"]["ministry"]["content"] |= {"claims": ["DVC", "VHL"], "dvc_schema": "dvc"}
    policy["facilities"]["moh"]["keys"]["dcc"]["content"] = {"claims": ["DVC"]}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    made = Appliance(tmp_path_factory.mktemp("claims") / "appliance")
    made.init()
    made.edit_policy(with_links)
    with serving(made):
        yield made


def link(**changes: Any) -> bytes:
    payload = {
        "url": f"https://{HOSTS[0]}/List/_search?_id=abc",
        "key": "rxTgYlOaKJPFtcEd0qcceN8wEU4p94SqAwIWQe6uX7Q",
        "exp": int(time.time()) + 3600,
        **changes,
    }
    return b"vhlink:/" + base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=")


def sign(own: Any, key: str, *payloads: bytes, request_id: str = "") -> Any:
    issuer = edge.connect(own.dev)
    try:
        return issuer.sign(payloads, key=key, format="FORMAT_HCERT", request_id=request_id)
    finally:
        issuer.channel.close()


def failures(own: Any, key: str, *payloads: bytes) -> list[edge.Refusal]:
    answer = sign(own, key, *payloads)
    return [edge.read(answer.failures[index]) for index in range(len(payloads))]


def verified_text(own: Any, text: bytes, folder: Path) -> dict[str, Any]:
    (folder / "text").write_bytes(text)
    client = own.client_file()
    done = signer("verify", "--client", client, "--json", folder / "text")
    assert done.code == 0, done.err
    value: dict[str, Any] = json.loads(done.out)
    shown = signer("verify", "--client", client, folder / "text")
    assert shown.code == 0
    return value | {"text": shown.out}


def explained(own: Any, key: str, payload: bytes, folder: Path) -> dict[str, Any]:
    (folder / "payload").write_bytes(payload)
    words = ("--principal", own.dev["clients"]["issuer"]["principal"], "--key", key)
    config = ("--config", own.dir / "signer.yaml", "--format", "HCERT", "--json")
    done = signer("policy", "explain", *config, *words, "--payload", folder / "payload")
    [decision] = json.loads(done.out)
    assert done.code == (not decision["allowed"])
    return dict(decision)


def test_a_link_is_signed_verified_and_repeated(own: Any, tmp_path: Path) -> None:
    payload, asked = link(label="Sổ tiêm"), str(uuid.uuid4())
    answer = sign(own, LINKS, payload, request_id=asked)
    assert not answer.failures
    value = verified_text(own, answer.signatures[0], tmp_path)
    assert value["vhl"]["url"] == f"https://{HOSTS[0]}/List/_search?_id=abc"
    assert "key" not in value["vhl"]
    ends = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(value["vhl"]["exp"]))
    assert value["expires"].startswith(ends)
    assert value["text"].endswith(f", a health link to {HOSTS[0]}\n")
    assert sign(own, LINKS, payload, request_id=asked).signatures == answer.signatures
    assert explained(own, LINKS, payload, tmp_path)["allowed"]


def test_what_a_key_may_not_certify_is_refused_by_rule_and_member(own: Any, tmp_path: Path) -> None:
    dcc = json.dumps(certificate(1)).encode()
    assert not sign(own, DCC, dcc).failures
    [denied] = failures(own, DCC, link())
    assert denied.reason == "CONTENT_DENIED"
    assert denied.metadata == {"rule": "facilities.moh.keys.dcc.content.claims"}
    elsewhere, over, object_ = failures(
        own, LINKS, link(url="https://evil.example/x"), link(exp=1), dcc
    )
    rule = "profiles.ministry.content.link_hosts"
    assert (elsewhere.reason, elsewhere.metadata) == ("CONTENT_DENIED", {"rule": rule})
    assert (over.reason, over.metadata) == ("PAYLOAD_INVALID", {"member": "exp"})
    assert (object_.reason, object_.metadata["rule"]) == (
        "PAYLOAD_INVALID",
        "facilities.moh.keys.dcc-rsa.content.claims",
    )
    decision = explained(own, LINKS, link(url="https://evil.example/x"), tmp_path)
    assert (decision["reason"], decision["rule"]) == ("CONTENT_DENIED", rule)


def test_a_certificate_by_the_schema_of_the_policy(own: Any, tmp_path: Path) -> None:
    dcc, asked = json.dumps(certificate(2)).encode(), str(uuid.uuid4())
    assert not sign(own, DCC, dcc, request_id=asked).failures
    own.edit_policy(with_schema)
    done = signer("reload", "--client", own.client_file("operator"))
    assert done.code == 0, done.err
    answer = sign(own, DCC, json.dumps(DVC).encode())
    assert not answer.failures
    value = verified_text(own, answer.signatures[0], tmp_path)
    assert value["dvc"] == DVC
    assert value["text"].endswith(", a DVC\n")
    late, absent = failures(
        own, DCC, json.dumps(DVC | {"dt": "1.1.2024"}).encode(), json.dumps({"n": "x"}).encode()
    )
    rule = "profiles.ministry.content.dvc_schema"
    assert late.metadata == {"rule": rule, "member": "dt"}
    assert (absent.message, absent.metadata["member"]) == ("dt is missing", "dt")
    # What was signed as a DCC would now be another claim: other bytes are not given out for it.
    edge.refused(lambda: sign(own, DCC, dcc, request_id=asked), "REQUEST_ID_REUSED")
    edge.until(lambda: verified(own)["whole"], "the log is signed")
    assert verified(own, "--decide")["problems"] == []
