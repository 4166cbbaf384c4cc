"""What the appliance signs is accepted by programs that share no code with it."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import verifiers


def sign(appliance: Any, key: str, message_format: str, payloads: list[bytes]) -> list[bytes]:
    with appliance.client() as client:
        results = list(client.sign(key, message_format, payloads, batch_items=5))
    assert [result.error for result in results] == [None] * len(payloads)
    return [result.signature for result in results]


@pytest.mark.parametrize("short", ["moh/dcc", "moh/dcc-rsa"])
def test_vaccination_certificates_pass_python_cwt(
    appliance: Any, vaccinations: dict[str, bytes], short: str
) -> None:
    key = appliance.key(short)
    payloads = list(vaccinations.values())
    texts = [text.decode() for text in sign(appliance, key["name"], "HCERT", payloads)]
    claims = verifiers.hcert(texts, Path(key["certificate"]))
    assert [claim["dcc"] for claim in claims] == [json.loads(payload) for payload in payloads]
    for claim in claims:
        assert claim["iss"] == "VN"
        assert claim["iat"] <= time.time() < claim["exp"] <= claim["iat"] + 366 * 86_400


def test_another_keys_certificate_is_rejected(
    appliance: Any, vaccinations: dict[str, bytes]
) -> None:
    payload = next(iter(vaccinations.values()))
    [text] = sign(appliance, appliance.key("moh/dcc")["name"], "HCERT", [payload])
    with pytest.raises(verifiers.RejectedError):
        verifiers.hcert([text.decode()], Path(appliance.key("moh/dcc-rsa")["certificate"]))


@pytest.mark.parametrize(
    "short",
    ["01-001/records", "01-001/records-rsa", "01-001/records-rs256", "01-001/records-ed25519"],
)
def test_records_pass_jwcrypto(appliance: Any, vaccinations: dict[str, bytes], short: str) -> None:
    key = appliance.key(short)
    payloads = list(vaccinations.values())
    tokens = [token.decode() for token in sign(appliance, key["name"], "JWS", payloads)]
    verdicts = verifiers.jws(tokens, Path(key["public_key"]), key["algorithm"])
    assert [verdict["payload"].encode() for verdict in verdicts] == payloads
    assert {verdict["header"]["alg"] for verdict in verdicts} == {key["algorithm"]}


def test_a_changed_record_is_rejected(appliance: Any) -> None:
    key = appliance.key("01-001/records")
    [token] = sign(appliance, key["name"], "JWS", [b'{"dose": 1}'])
    header, _, signature = token.decode().split(".")
    forged = f"{header}.eyJkb3NlIjogMn0.{signature}"
    with pytest.raises(verifiers.RejectedError):
        verifiers.jws([forged], Path(key["public_key"]), key["algorithm"])


@pytest.mark.parametrize(
    "short",
    ["01-001/records", "01-001/records-rsa", "01-001/records-rs256", "01-001/records-ed25519"],
)
def test_raw_signatures_pass_openssl(appliance: Any, short: str) -> None:
    key = appliance.key(short)
    payloads = [b"a record", bytes(1000), b"\n"]
    signatures = sign(appliance, key["name"], "MESSAGE", payloads)
    public_key = Path(key["public_key"])
    for payload, signature in zip(payloads, signatures, strict=True):
        verifiers.openssl(payload, signature, public_key, key["algorithm"])
    with pytest.raises(verifiers.RejectedError):
        verifiers.openssl(b"another", signatures[0], public_key, key["algorithm"])
