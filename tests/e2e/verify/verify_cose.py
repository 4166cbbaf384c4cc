"""Verifies COSE_Sign1 messages and HC1 texts with pycose; shares no code with the appliance.

Usage: verify_cose.py KEY.pem ALGORITHM < messages (one a line; COSE_Sign1 in Base64).
KEY.pem is a public key, or the certificate that the key id is of. Prints one JSON object
a line: the payload in Base64, of an HC1 text also its DCC, or why the message is
`refused`. Ends with status 1 if one was.
"""

import base64
import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import base45
import cbor2
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pycose.headers import KID, Algorithm
from pycose.keys import CoseKey
from pycose.messages import CoseMessage, Sign1Message


def trusted(pem: bytes) -> tuple[CoseKey, bytes]:
    """The key, and the key id that the appliance gives it."""
    if b"CERTIFICATE" in pem:
        certificate = x509.load_pem_x509_certificate(pem)
        public, named = certificate.public_key(), certificate.public_bytes(Encoding.DER)
    else:
        public = load_pem_public_key(pem)
        named = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    spki = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return CoseKey.from_pem_public_key(spki.decode()), hashlib.sha256(named).digest()[:8]


def verified(text: str, key: CoseKey, kid: bytes, algorithm: str) -> dict[str, Any]:
    if text.startswith("HC1:"):
        raw = zlib.decompress(base45.b45decode(text.removeprefix("HC1:")))
    else:
        raw = base64.b64decode(text, validate=True)
    message = CoseMessage.decode(raw)
    if not isinstance(message, Sign1Message):
        raise TypeError("not a COSE_Sign1")
    said = message.phdr[Algorithm].fullname
    if (said, message.phdr[KID]) != (algorithm, kid):
        raise ValueError(f"the header says {said}, or another key id than {kid.hex()}")
    message.key = key
    if not message.verify_signature():
        raise ValueError("the signature is wrong")
    verdict = {"payload": base64.b64encode(message.payload).decode()}
    if text.startswith("HC1:"):
        verdict["dcc"] = cbor2.loads(message.payload)[-260][1]
    return verdict


def main() -> None:
    key, kid = trusted(Path(sys.argv[1]).read_bytes())
    refused = False
    for line in sys.stdin:
        try:
            verdict = verified(line.rstrip("\n"), key, kid, sys.argv[2].upper())
        except Exception as error:  # noqa: BLE001 - whatever the packages raise
            verdict, refused = {"refused": f"{type(error).__name__}: {error}"}, True
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    sys.exit(refused)


if __name__ == "__main__":
    main()
