"""A Node client made from the .proto files alone: it signs, and reads our errors."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import google.rpc
import pytest

from tests.e2e import streaming, verifiers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
INCLUDE = [str(ROOT / "proto"), str(Path(next(iter(google.rpc.__path__))).parents[1])]


@pytest.fixture(scope="session")
def program(node: Path) -> Path:
    """The client."""
    return node / "client.mjs"


def sign(
    program: Path, appliance: Any, name: str, key: str, payloads: list[bytes], **changes: str
) -> dict[str, Any]:
    identity = appliance.dev["clients"][name]
    asked = {
        "address": appliance.dev["address"],
        "server_name": appliance.dev["server_name"],
        "ca": appliance.dev["ca"],
        "cert": identity["cert"],
        "key": identity["key"],
        "include": INCLUDE,
        "resource": key,
        "format": "FORMAT_MESSAGE",
        "payloads": [base64.b64encode(payload).decode() for payload in payloads],
        **changes,
    }
    done = subprocess.run(
        ["node", str(program)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("short", ["01-001/records", "01-001/records-rsa"])
def test_a_batch_signed_by_node_verifies_with_openssl(
    program: Path, appliance: Any, short: str
) -> None:
    key = appliance.key(short)
    payloads = [f"message {number}".encode() for number in range(20)]
    answer = sign(program, appliance, "issuer", key["name"], payloads)
    assert answer["key_version"].startswith(f"{key['name']}/versions/")
    assert answer["failures"] == {}
    assert len(answer["signatures"]) == len(payloads)
    for payload, signature in zip(payloads, answer["signatures"], strict=True):
        public_key = Path(key["public_key"])
        verifiers.openssl(payload, base64.b64decode(signature), public_key, key["algorithm"])


def test_a_bad_item_fails_alone_for_node(program: Path, appliance: Any) -> None:
    payloads = [b'{"a": 1}', b"no JSON", b'{"b": 2}']
    answer = sign(
        program,
        appliance,
        "issuer",
        "facilities/01-001/keys/records",
        payloads,
        format="FORMAT_JWS",
    )
    assert list(answer["failures"]) == ["1"]
    assert [bool(signature) for signature in answer["signatures"]] == [True, False, True]


def test_node_reads_the_reason_of_a_refusal(program: Path, appliance: Any) -> None:
    answer = sign(program, appliance, "stranger", "facilities/01-001/keys/records", [b"x"])
    assert answer["error"]["code"] == "UNAUTHENTICATED"
    assert answer["error"]["reason"] == "PEER_UNKNOWN"


def test_items_signed_over_a_stream_verify_with_nodes_own_crypto(
    program: Path, appliance: Any
) -> None:
    streaming.check(["node", str(program.with_name("stream.mjs"))], appliance, include=INCLUDE)
