"""Documents that a real appliance signed: OpenSSL and `signer verify` agree about them."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from signer.client.verification import TrustedKeys, VerificationError
from signer.model import Format
from tests.commands import signer
from tests.e2e import verifiers
from tests.e2e.sources import sign

KEY = "facilities/moh/keys/documents"
DOCUMENTS = [b"%PDF-1.7 \xff\x00", b"", b"line\r\nline\n"]


@pytest.fixture
def certificates(appliance: Any, tmp_path: Path) -> Path:
    out = tmp_path / "certificates.pem"
    words = ("--form", "certificates", "--out", out, "--client", appliance.client_file())
    done = signer("keys", "export", *words)
    assert done.code == 0, done.err
    return out


def test_verify_agrees_and_says_what_is_wrong(
    appliance: Any, certificates: Path, tmp_path: Path
) -> None:
    document = tmp_path / "report"
    document.write_bytes(DOCUMENTS[0])
    words = ("--client", appliance.client_file(), "--key", KEY, "--format", "CMS")
    done = signer("sign", *words, document)
    assert done.code == 0, done.err
    made, other = tmp_path / "report.p7s", tmp_path / "other"
    other.write_bytes(DOCUMENTS[2])
    check = ("verify", "--keys", certificates)
    good = signer(*check, "--signature", made, "--json", document)
    assert good.code == 0, good.out
    said = json.loads(good.out)
    assert (said["valid"], said["format"], said["key"]) == (True, "CMS", f"{KEY}/versions/1")
    assert said["time"].endswith("Z")
    hexadecimal = tmp_path / "report.sha256"
    hexadecimal.write_text(sha256(DOCUMENTS[0]).hexdigest())
    of_digest = (*check, "--format", "CMS_DIGEST", "--signature", made)
    assert signer(*of_digest, hexadecimal).code == 0
    for done in (signer(*check, "--signature", made, other), signer(*of_digest, other)):
        assert done.code == 1
        assert "NOT VALID: it is genuine, but of another message" in done.out
    alone = signer(*check, made)
    assert alone.code == 1
    assert "which does not contain what it signs: give both" in alone.out


def test_each_changed_byte_of_a_signature_is_refused_by_both(
    appliance: Any, certificates: Path
) -> None:
    [made] = sign(appliance, KEY, "CMS", [DOCUMENTS[0]])
    trusted = TrustedKeys.read(certificates.read_bytes())
    # The attributes and the signature: what comes before is not signed.
    for place in range(len(made) - 1, len(made) - 300, -29):
        changed = made[:place] + bytes([made[place] ^ 1]) + made[place + 1 :]
        with pytest.raises(verifiers.RejectedError):
            verifiers.openssl_cms(DOCUMENTS[0], changed, appliance.dir / "pki" / "dcc-ca.pem")
        with pytest.raises(VerificationError):
            trusted.verify_cms(Format.CMS, DOCUMENTS[0], changed, 2**32)


def test_a_signature_in_hand_is_found_with_its_document(appliance: Any, tmp_path: Path) -> None:
    [made] = sign(appliance, KEY, "CMS", [DOCUMENTS[0]])
    document, other, signature = (tmp_path / name for name in ("a", "b", "a.p7s"))
    document.write_bytes(DOCUMENTS[0])
    other.write_bytes(DOCUMENTS[2])
    signature.write_bytes(made)
    find = ("audit", "find", "--config", appliance.dir / "signer.yaml", "--file")
    for words in ((signature,), (document, "--signature", signature)):
        done = signer(*find, *words)
        assert done.code == 0, done.err
        assert "This very message was signed here" in done.out
    done = signer(*find, other, "--signature", signature)
    assert done.code == 1
    assert "another message" in done.out + done.err
