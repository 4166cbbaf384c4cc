"""``signer sign`` as people use it, against a real appliance."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e import verifiers


def run(appliance: Any, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "signer", "sign", "--client", str(appliance.client_file()), *words],
        input=data,
        capture_output=True,
        check=False,
        timeout=120,
    )


RECORDS = ("--key", "facilities/01-001/keys/records", "--format")


def test_files_get_a_signature_next_to_them(appliance: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file in files:
        file.write_text(f'{{"name": "{file.name}"}}')
    done = run(appliance, *RECORDS, "JWS", *map(str, files))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    tokens = [file.with_name(f"{file.name}.jws").read_text() for file in files]
    public_key = Path(appliance.key("01-001/records")["public_key"])
    verdicts = verifiers.jws(tokens, public_key, "ES256")
    assert [v["payload"] for v in verdicts] == [file.read_text() for file in files]


def test_lines_keep_their_order_and_a_bad_one_leaves_an_empty_line(appliance: Any) -> None:
    lines = [b'{"n": %d}' % number for number in range(1200)]
    lines[700] = b"not JSON"
    done = run(appliance, *RECORDS, "JWS", "--lines", "-", data=b"\n".join(lines))
    assert done.returncode == 1
    tokens = done.stdout.decode().splitlines()
    assert tokens[700] == ""
    assert b"stdin, line 701: PAYLOAD_INVALID" in done.stderr
    assert b"1 of 1200 payloads" in done.stderr
    payloads = [
        base64.urlsafe_b64decode(token.split(".")[1] + "==")
        for number, token in enumerate(tokens)
        if number != 700
    ]
    assert payloads == lines[:700] + lines[701:]


def test_json_tells_everything(appliance: Any, tmp_path: Path) -> None:
    folder = tmp_path / "signed"
    payload = tmp_path / "message"
    payload.write_bytes(b"hello")
    done = run(appliance, *RECORDS, "MESSAGE", "--json", "--out", str(folder), str(payload))
    assert done.returncode == 0, done.stderr
    [said] = map(json.loads, done.stdout.splitlines())
    assert said.pop("audit_record") > 0
    assert said == {
        "index": 0,
        "input": str(payload),
        "key_version": "facilities/01-001/keys/records/versions/1",
        "output": str(folder / "message.sig"),
    }
    public_key = Path(appliance.key("01-001/records")["public_key"])
    verifiers.openssl(b"hello", (folder / "message.sig").read_bytes(), public_key, "ES256")


def test_a_refusal_names_the_reason_and_ends_with_one(appliance: Any) -> None:
    done = run(appliance, "--key", "facilities/99-999/keys/x", "--format", "JWS", "-", data=b"{}")
    assert done.returncode == 1
    assert done.stderr.count(b"POLICY_DENIED") == 1
    assert b"1 of 1 payload has no signature" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_quota_that_is_used_up_is_said_once_and_every_line_is_accounted_for(
    make_appliance: Any,
) -> None:
    def limit(policy: dict[str, Any]) -> None:
        policy["facilities"]["01-001"]["quotas"] = ["10 per day"]

    made = make_appliance(workers=1, policy=limit)
    lines = [b'{"n": %d}' % number for number in range(25)]
    words = (*RECORDS, "JWS", "--lines", "--timeout", "5")
    done = run(made, *words, "-", data=b"\n".join(lines))
    assert done.returncode == 1
    assert [bool(line) for line in done.stdout.splitlines()] == [True] * 10 + [False] * 15
    said = done.stderr.decode()
    assert said.count("QUOTA_EXCEEDED") == 1
    assert "it may be tried again at 20" in said
    assert said.splitlines()[-1] == "signer: 15 of 25 payloads have no signature"

    done = run(made, *words, "--json", "-", data=b"\n".join(lines))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, 26))
    assert {answer["error"]["reason"] for answer in answers} == {"QUOTA_EXCEEDED"}


def test_wrong_usage_ends_with_two(appliance: Any, tmp_path: Path) -> None:
    assert run(appliance, *RECORDS, "PDF", "-").returncode == 2
    assert run(appliance, *RECORDS, "JWS", str(tmp_path / "absent")).returncode == 2
    assert run(appliance, *RECORDS, "JWS", "--lines", "--out", "x", "-").returncode == 2
