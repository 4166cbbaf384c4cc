"""What clients in other languages are asked to sign over a stream, and what they must report."""

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from signer.v1 import signing_pb2

COUNT = 300
DENIED = "facilities/01-002/keys/absent"
"""Not allowed, or not there: the policy decides before the registry is asked."""


def requests(key: str) -> list[dict[str, Any]]:
    """Messages, among them a payload that does not parse and a key that nobody may use."""
    made: list[dict[str, Any]] = [
        {"key": key, "format": signing_pb2.FORMAT_MESSAGE, "payload": b"message %d" % number}
        for number in range(COUNT)
    ]
    made[7] |= {"format": signing_pb2.FORMAT_JWS, "payload": b"not JSON"}
    made[11] |= {"key": DENIED}
    return [{**each, "payload": base64.b64encode(each["payload"]).decode()} for each in made]


def check(program: Sequence[str], appliance: Any, **more: Any) -> None:
    """Runs a client; it reads its task from standard input and prints what became of it."""
    key = appliance.key("01-001/records")
    identity = appliance.dev["clients"]["issuer"]
    asked = {
        "address": appliance.dev["address"],
        "server_name": appliance.dev["server_name"],
        "ca": appliance.dev["ca"],
        "cert": identity["cert"],
        "key": identity["key"],
        "public_key": str(Path(key["public_key"])),
        "requests": requests(key["name"]),
        **more,
    }
    done = subprocess.run(
        program, input=json.dumps(asked), capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["end"] == "OK", said
    answers = said["answers"]
    assert answers.pop(11)["error"] in {"POLICY_DENIED", "KEY_NOT_FOUND"}
    assert answers.pop(7) == {"failure": "PAYLOAD_INVALID"}
    assert answers == [{"verified": True}] * (COUNT - 2)
