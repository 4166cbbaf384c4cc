"""``signer sign`` as people use it, against a real appliance."""

import base64
import json
from pathlib import Path
from typing import Any

from tests.commands import Done, signer
from tests.e2e import verifiers


def run(appliance: Any, *words: str, given: str = "") -> Done:
    return signer("sign", "--client", appliance.client_file(), *words, given=given)


RECORDS = ("--key", "facilities/01-001/keys/records", "--format")


def test_files_get_a_signature_next_to_them(appliance: Any, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.json" for number in range(3)]
    for file in files:
        file.write_text(f'{{"name": "{file.name}"}}')
    done = run(appliance, *RECORDS, "JWS", *map(str, files))
    assert done == (0, "", "")
    tokens = [file.with_name(f"{file.name}.jws").read_text() for file in files]
    public_key = Path(appliance.key("01-001/records")["public_key"])
    verdicts = verifiers.jws(tokens, public_key, "ES256")
    assert [v["payload"] for v in verdicts] == [file.read_text() for file in files]


def test_lines_keep_their_order_and_a_bad_one_leaves_an_empty_line(appliance: Any) -> None:
    lines = [f'{{"n": {number}}}' for number in range(1200)]
    lines[700] = "not JSON"
    done = run(appliance, *RECORDS, "JWS", "--lines", "-", given="\n".join(lines))
    assert done.code == 1
    tokens = done.out.splitlines()
    assert tokens[700] == ""
    assert "stdin, line 701: PAYLOAD_INVALID" in done.err
    assert "1 of 1200 payloads" in done.err
    payloads = [
        base64.urlsafe_b64decode(token.split(".")[1] + "==").decode()
        for number, token in enumerate(tokens)
        if number != 700
    ]
    assert payloads == lines[:700] + lines[701:]


def test_json_tells_everything(appliance: Any, tmp_path: Path) -> None:
    folder = tmp_path / "signed"
    payload = tmp_path / "message"
    payload.write_bytes(b"hello")
    done = run(appliance, *RECORDS, "MESSAGE", "--json", "--out", str(folder), str(payload))
    assert done.code == 0, done.err
    [said] = map(json.loads, done.out.splitlines())
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
    done = run(appliance, "--key", "facilities/99-999/keys/x", "--format", "JWS", "-", given="{}")
    assert done.code == 1
    assert done.err.count("POLICY_DENIED") == 1
    assert "1 of 1 payload has no signature" in done.err
    assert "Traceback" not in done.err


def test_a_folder_is_made_for_signatures_and_not_for_refusals(
    appliance: Any, tmp_path: Path
) -> None:
    good, bad, out = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "out"
    good.write_text("{}")
    bad.write_text("{")
    refused = ("--key", "facilities/99-999/keys/x", "--format")
    for key, file in ((refused, good), (RECORDS, bad)):
        done = run(appliance, *key, "JWS", "--out", str(out), str(file))
        assert (done.code, out.exists(), "new folder" in done.err) == (1, False, False)
    done = run(appliance, *RECORDS, "JWS", "--out", str(out), str(good), str(bad))
    assert (done.code, [each.name for each in out.iterdir()]) == (1, ["good.json.jws"])
    assert f"{out} is a new folder" in done.err
    out.rename(tmp_path / "moved")
    out.mkdir()
    done = run(appliance, *refused, "JWS", "--out", str(out), str(good))
    assert (done.code, out.exists(), "new folder" in done.err) == (1, True, False)


def test_a_quota_that_is_used_up_is_said_once_and_every_line_is_accounted_for(
    make_appliance: Any,
) -> None:
    def limit(policy: dict[str, Any]) -> None:
        policy["facilities"]["01-001"]["quotas"] = ["10 per day"]

    made = make_appliance(policy=limit)
    lines = [f'{{"n": {number}}}' for number in range(25)]
    words = (*RECORDS, "JWS", "--lines", "--timeout", "5")
    done = run(made, *words, "-", given="\n".join(lines))
    assert done.code == 1
    assert [bool(line) for line in done.out.splitlines()] == [True] * 10 + [False] * 15
    said = done.err
    assert said.count("QUOTA_EXCEEDED") == 1
    assert "it may be tried again at 20" in said
    assert said.splitlines()[-1] == "signer: 15 of 25 payloads have no signature"

    done = run(made, *words, "--json", "-", given="\n".join(lines))
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["line"] for answer in answers] == list(range(1, 26))
    assert {answer["error"]["reason"] for answer in answers} == {"QUOTA_EXCEEDED"}


def test_wrong_usage_ends_with_two(appliance: Any, tmp_path: Path) -> None:
    assert run(appliance, *RECORDS, "PDF", "-").code == 2
    assert run(appliance, *RECORDS, "JWS", str(tmp_path / "absent")).code == 2
    assert run(appliance, *RECORDS, "JWS", "--lines", "--out", "x", "-").code == 2
