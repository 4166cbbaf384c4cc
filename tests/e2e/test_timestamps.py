"""Time-stamps of a real appliance: their numbers, bad requests, and what `signer verify` says."""

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from signer.formats.timestamp_reading import read_timestamp
from tests.commands import signer

KEY = "facilities/moh/keys/tsa"
DOCUMENT = b"a document of nobody"


def query(folder: Path, *words: str) -> bytes:
    (folder / "document").write_bytes(DOCUMENT)
    command = ["openssl", "ts", "-query", "-data", str(folder / "document"), *words]
    subprocess.run([*command, "-out", str(folder / "query")], capture_output=True, check=True)
    return (folder / "query").read_bytes()


@pytest.fixture
def certificates(appliance: Any, tmp_path: Path) -> Path:
    out = tmp_path / "certificates.pem"
    words = ("--form", "certificates", "--out", out, "--client", appliance.client_file())
    done = signer("keys", "export", *words)
    assert done.code == 0, done.err
    return out


def test_no_serial_number_repeats_except_in_a_repetition(appliance: Any, tmp_path: Path) -> None:
    request = query(tmp_path, "-sha256", "-no_nonce")
    with appliance.client() as client:
        request_id = uuid.uuid4()
        first, again, other = (
            client.sign_batch(KEY, "TIMESTAMP", [request] * 300, request_id=name)
            for name in (request_id, request_id, None)
        )
    assert [each.signature for each in first] == [each.signature for each in again]
    serials = [read_timestamp(each.signature).serial for each in (*first, *other)]
    assert len(set(serials)) == 600


def test_bad_requests_fail_alone(appliance: Any, tmp_path: Path) -> None:
    good, foreign = query(tmp_path, "-sha256"), query(tmp_path, "-sha256", "-tspolicy", "1.2.3")
    with appliance.client() as client:
        results = client.sign_batch(KEY, "TIMESTAMP", [b"", good, foreign])
    assert [result.ok for result in results] == [False, True, False]
    for result in (results[0], results[2]):
        assert result.error is not None
        assert result.error.reason == "PAYLOAD_INVALID"


def test_verify_agrees_and_says_what_is_wrong(
    appliance: Any, certificates: Path, tmp_path: Path
) -> None:
    query(tmp_path, "-sha256")
    words = ("--client", appliance.client_file(), "--key", KEY, "--format", "TIMESTAMP")
    done = signer("sign", *words, tmp_path / "query")
    assert done.code == 0, done.err
    check = ("verify", "--keys", certificates, "--signature", tmp_path / "query.tsr", "--json")
    good = signer(*check, tmp_path / "document")
    assert good.code == 0, good.out
    said = json.loads(good.out)
    assert (said["format"], said["key"]) == ("TIMESTAMP", f"{KEY}/versions/1")
    other = tmp_path / "other"
    other.write_bytes(b"another")
    bad = signer(*check, other)
    assert bad.code == 1
    assert "but of another message" in json.loads(bad.out)["error"]
    find = ("audit", "find", "--config", appliance.dir / "signer.yaml", "--file")
    found = signer(*find, tmp_path / "document", "--signature", tmp_path / "query.tsr")
    assert "This very message was signed here" in found.out, found.err
    assert signer(*find, other, "--signature", tmp_path / "query.tsr").code == 1
