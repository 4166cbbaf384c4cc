"""Verifies compact JWS with jwcrypto; shares no code with the appliance.

Usage: verify_jws.py PUBLIC_KEY.pem ALGORITHM < tokens (one a line). Prints one JSON
object a line: header and payload that were verified. Ends with status 1 at the
first bad token.
"""

import json
import sys
from pathlib import Path

from jwcrypto import jwk, jws


def main() -> None:
    key = jwk.JWK.from_pem(Path(sys.argv[1]).read_bytes())
    for line in sys.stdin:
        token = jws.JWS()
        token.allowed_algs = [sys.argv[2]]
        token.deserialize(line.strip())
        token.verify(key)
        header = token.jose_header
        if header["kid"] != key.thumbprint():
            sys.exit("the kid is not the key's thumbprint (RFC 7638)")
        verified = {"header": header, "payload": token.payload.decode()}
        sys.stdout.write(json.dumps(verified) + "\n")


if __name__ == "__main__":
    main()
