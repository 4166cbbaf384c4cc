"""Verifies HC1 texts with python-cwt; shares no code with the appliance.

Usage: verify_hcert.py CERTIFICATE.pem < texts (one a line). Prints one JSON object
a line: the claims that were verified. Ends with status 1 at the first bad text.
"""

import json
import sys
import zlib
from pathlib import Path

import base45
import cwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes

HCERT, DCC = -260, 1


def main() -> None:
    certificate = Path(sys.argv[1]).read_text()
    parsed = x509.load_pem_x509_certificate(certificate.encode())
    kid = parsed.fingerprint(hashes.SHA256())[:8]
    # A PS256 certificate is an RSA certificate: its algorithm must be told.
    rsa = "rsa" in type(parsed.public_key()).__module__
    key = cwt.COSEKey.from_pem(certificate, kid=kid, **({"alg": "PS256"} if rsa else {}))
    for line in sys.stdin:
        text = line.rstrip("\n")
        if not text.startswith("HC1:"):
            sys.exit("a text without the prefix HC1:")
        message = zlib.decompress(base45.b45decode(text.removeprefix("HC1:")))
        claims = cwt.decode(message, keys=key)
        verified = {
            "iss": claims[1],
            "exp": claims[4],
            "iat": claims[6],
            "dcc": claims[HCERT][DCC],
            "kid": kid.hex(),
        }
        sys.stdout.write(json.dumps(verified) + "\n")


if __name__ == "__main__":
    main()
