"""Sig_structures of the COSE working group's examples with one signer, byte for byte."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cbor2
import pytest

from signer.formats.cose import Envelope
from tests import vectors

EXAMPLES = vectors.FOLDER / vectors.COSE_EXAMPLES

# Names of headers and algorithms in the examples (RFC 9052 section 3.1, RFC 9053).
LABELS = {"alg": 1, "ctyp": 3, "kid": 4}
ALGORITHMS = {"ES256": -7, "EdDSA": -8, "ES384": -35, "ES512": -36}


def load(path: Path) -> dict[str, Any]:
    example: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return example


ONE_SIGNER = [p for p in sorted(EXAMPLES.glob("*/*.json")) if "sign0" in load(p)["input"]]

# "failures" are what an example did to its message after signing.
UNTOUCHED = [path for path in ONE_SIGNER if "failures" not in load(path)["input"]]


def headers(named: Mapping[str, Any]) -> dict[int, object]:
    values: Mapping[str, Callable[[Any], object]] = {
        "alg": ALGORITHMS.get,
        "kid": str.encode,
        "ctyp": int,
    }
    return {LABELS[name]: values[name](value) for name, value in named.items()}


def envelope(signer: Mapping[str, Any]) -> Envelope:
    return Envelope(
        headers(signer.get("protected", {})),
        headers(signer.get("unprotected", {})),
        bytes.fromhex(signer.get("external", "")),
    )


def payload(given: Mapping[str, Any]) -> bytes:
    if "plaintext_hex" in given:
        return bytes.fromhex(given["plaintext_hex"])
    return str(given["plaintext"]).encode()


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the vectors are not here")
def test_all_examples_with_one_signer_are_found() -> None:
    with_signature1 = [
        path
        for path in EXAMPLES.glob("*/*.json")
        if "ToBeSign_hex" in load(path).get("intermediates", {})
    ]
    assert sorted(with_signature1) == ONE_SIGNER
    assert len(ONE_SIGNER) >= 15


@pytest.mark.parametrize("path", ONE_SIGNER, ids=lambda path: path.stem)
def test_to_be_signed(path: Path) -> None:
    example = load(path)
    given = example["input"]
    ours = envelope(given["sign0"]).to_sign(payload(given))
    assert ours.hex() == example["intermediates"]["ToBeSign_hex"].lower()


@pytest.mark.parametrize("path", UNTOUCHED, ids=lambda path: path.stem)
def test_message(path: Path) -> None:
    example = load(path)
    expected = bytes.fromhex(example["output"]["cbor"])
    signature = cbor2.loads(expected).value[3]
    wrap = envelope(example["input"]["sign0"])
    assert wrap.message(wrap.to_sign(payload(example["input"])), signature) == expected
