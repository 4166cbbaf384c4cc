"""Verifies HC1 texts with python-cwt; shares no code with the appliance.

Usage: verify_hcert.py CERTIFICATE.pem < texts (one a line). Prints one JSON object
a line: the claims that were verified, or why the text is `refused`. Ends with status 1
if one was.
"""

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import base45
import cwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes

HCERT, DCC = -260, 1


def verified(text: str, key: Any, kid: bytes) -> dict[str, Any]:
    if not text.startswith("HC1:"):
        raise ValueError("a text without the prefix HC1:")
    message = zlib.decompress(base45.b45decode(text.removeprefix("HC1:")))
    claims = cwt.decode(message, keys=key)
    named = {"iss": claims[1], "exp": claims[4], "iat": claims[6], "kid": kid.hex()}
    return {**named, "dcc": claims[HCERT][DCC]}


def main() -> None:
    certificate = Path(sys.argv[1]).read_bytes()
    parsed = x509.load_pem_x509_certificate(certificate)
    kid = parsed.fingerprint(hashes.SHA256())[:8]
    # A PS256 certificate is an RSA certificate: its algorithm must be told.
    rsa = "rsa" in type(parsed.public_key()).__module__
    key = cwt.COSEKey.from_pem(certificate, kid=kid, **({"alg": "PS256"} if rsa else {}))
    refused = False
    for line in sys.stdin:
        try:
            verdict = verified(line.rstrip("\n"), key, kid)
        except Exception as error:  # noqa: BLE001 - whatever the packages raise
            verdict, refused = {"refused": f"{type(error).__name__}: {error}"}, True
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    sys.exit(refused)


if __name__ == "__main__":
    main()
