"""What ``signer verify`` says of the vectors of others: it accepts the good ones, each as of its
own time, and refuses each bad one for the reason for which it is bad.
"""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Done, Run, run
from tests.conformance import test_cose_examples as cose
from tests.conformance.test_dcc_vectors import ALL, POSITIVE, load, name
from tests.e2e import verifiers

__all__ = ["run"]

REASONS: Mapping[str, str] = {
    "B1": "what comes after HC1: is not Base45",
    "CBO1": "its certificate is not a DCC, as its claim 1 says",
    "CBO2": "what is in its zlib stream is not a COSE_Sign1",
    "CO5": "its signature is wrong: the message was changed",
    "CO6": "is not for its type v",
    "CO7": "is not for its type r",
    "CO8": "is not for its type t",
    "CO9": "is not for its type r",
    "CO10": "is not for its type v",
    "CO11": "is not for its type t",
    "CO16": "issued at 2023-05-03T18:00:00Z, which is in the future",
    "CO17": "expired at 2018-05-05T18:00:00Z",
    "CO22": 'no key that is trusted has its key id "666f6f"',
    "CO23": 'no key that is trusted has its key id "666f6f"',
    "DGC1": "its certificate has not exactly one type",
    "DGC2": "its certificate has not exactly one type",
    "H1": "the text of an HCERT (HC1:)",
    "H2": "the text of an HCERT (HC1:)",
    "H3": "the text of an HCERT (HC1:)",
    "Z1": "what is in its Base45 is not one zlib stream",
    "Z2": "what is in its Base45 is not one zlib stream",
}
"""Why the EU's bad certificates are refused. The picture of Q1 is bad, and its text is good."""


def judge(run: Run, path: Path, folder: Path, form: str, content: bytes) -> Done:
    vector = load(path)
    keys, message = folder / "certificate.der", folder / "message"
    keys.write_bytes(base64.b64decode(vector["TESTCTX"]["CERTIFICATE"]))
    message.write_bytes(content)
    clock = datetime.fromisoformat(vector["TESTCTX"]["VALIDATIONCLOCK"])
    words = ("--at", clock.isoformat(), "--format", form, "--json", message)
    return run("verify", "--keys", keys, *words)


@pytest.mark.parametrize("path", [path for path in ALL if path.stem not in REASONS], ids=name)
def test_good_certificates_are_accepted(run: Run, tmp_path: Path, path: Path) -> None:
    vector = load(path)
    done = judge(run, path, tmp_path, "HCERT", vector["PREFIX"].encode())
    assert done.code == 0, done.out
    said = json.loads(done.out)
    assert said["issuer"] in {"AT", "SE"}
    if "JSON" in vector:
        assert said["dcc"] == vector["JSON"]
    if "COSE" in vector:
        whole = judge(run, path, tmp_path, "COSE_SIGN1", bytes.fromhex(vector["COSE"]))
        assert whole.code == 0, whole.out


@pytest.mark.parametrize("path", [path for path in ALL if path.stem in REASONS], ids=name)
def test_bad_certificates_are_refused_with_their_reason(
    run: Run, tmp_path: Path, path: Path
) -> None:
    done = judge(run, path, tmp_path, "HCERT", load(path)["PREFIX"].encode())
    assert done.code == 1
    assert REASONS[path.stem] in json.loads(done.out)["error"]


@pytest.mark.skipif(not ALL, reason="the vectors are not here")
def test_each_bad_certificate_has_a_reason() -> None:
    assert {path.stem for path in {*ALL} - {*POSITIVE}} == {*REASONS, "Q1"}


@pytest.mark.skipif(not ALL, reason="the vectors are not here")
def test_the_pictures_of_the_vectors(tmp_path: Path) -> None:
    """zxing-cpp reads the good ones, and nothing in the one that is bad."""
    good, texts = [], []
    for path in ALL:
        vector, file = load(path), tmp_path / f"{name(path)}.png"
        if "2DCODE" not in vector:
            continue
        file.write_bytes(base64.b64decode(vector["2DCODE"]))
        if path.stem == "Q1":
            with pytest.raises(verifiers.RejectedError):
                verifiers.qr_codes([file])
        else:
            good.append(file)
            texts.append(vector["PREFIX"])
    assert verifiers.qr_codes(good) == texts
    assert good


# --- the examples of the COSE working group -------------------------------------------------------

COSE_REASONS: Mapping[str, str] = {
    "sign-fail-01": "it is not a compact JWS",  # a tag that is not of COSE_Sign1
    "sign-fail-02": "its signature is wrong",
    "sign-fail-03": "its algorithm is -999: it must be one of",
    "sign-fail-04": "its algorithm is 'unknown': it must be one of",
    "sign-fail-06": "its signature is wrong",
    "sign-fail-07": "its signature is wrong",
    # Good ones that no appliance makes.
    "ecdsa-sig-03": "it must be an EC key on P-256 or P-384, an RSA key, or an Ed25519 key",
    "ecdsa-sig-04": "its algorithm is -36: it must be one of",  # ES512 with P-256
    "eddsa-sig-02": "it must be an EC key on P-256 or P-384, an RSA key, or an Ed25519 key",
    "sign-pass-02": "its signature is wrong",  # external data, which a file does not hold
}


@pytest.mark.parametrize("path", cose.ONE_SIGNER, ids=lambda path: str(path.stem))
def test_examples_of_cose(run: Run, tmp_path: Path, path: Path) -> None:
    example = cose.load(path)
    keys, message = tmp_path / "key.json", tmp_path / "message"
    keys.write_text(json.dumps(public(example["input"]["sign0"]["key"])))
    message.write_bytes(bytes.fromhex(example["output"]["cbor"]))
    done = run("verify", "--keys", keys, message)
    if reason := COSE_REASONS.get(path.stem):
        assert done.code == 1
        assert reason in done.out + done.err
    else:
        assert done.code == 0, done.out
        assert ": valid COSE_SIGN1, " in done.out


@pytest.mark.skipif(not cose.ONE_SIGNER, reason="the vectors are not here")
def test_each_bad_example_of_cose_has_a_reason() -> None:
    bad = {path.stem for path in cose.ONE_SIGNER if cose.load(path).get("fail")}
    assert bad == {stem for stem in COSE_REASONS if stem.startswith("sign-fail-")}


def public(key: Mapping[str, Any]) -> dict[str, Any]:
    """The public part of a key as the examples have it, whose coordinates may be in hex."""
    jwk = {each: value for each, value in key.items() if each in {"kty", "crv", "x", "y", "kid"}}
    for each in ("x", "y"):
        if f"{each}_hex" in key:
            raw = bytes.fromhex(key[f"{each}_hex"])
            jwk[each] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    return jwk
