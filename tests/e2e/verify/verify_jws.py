"""Verifies compact JWS with jwcrypto; shares no code with the appliance.

Usage: verify_jws.py PUBLIC_KEY.pem ALGORITHM < tokens (one a line). Prints one JSON
object a line: header and payload that were verified, or why the token is `refused`.
Ends with status 1 if one was.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jwcrypto import jwk, jws


def verified(text: str, key: jwk.JWK, algorithm: str) -> dict[str, Any]:
    token = jws.JWS()
    token.allowed_algs = [algorithm]
    token.deserialize(text)
    token.verify(key)
    header = token.jose_header
    if header["kid"] != key.thumbprint():
        raise ValueError("the kid is not the key's thumbprint (RFC 7638)")
    return {"header": header, "payload": token.payload.decode()}


def main() -> None:
    key = jwk.JWK.from_pem(Path(sys.argv[1]).read_bytes())
    refused = False
    for line in sys.stdin:
        try:
            verdict = verified(line.strip(), key, sys.argv[2])
        except Exception as error:  # noqa: BLE001 - whatever the package raises
            verdict, refused = {"refused": f"{type(error).__name__}: {error}"}, True
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    sys.exit(refused)


if __name__ == "__main__":
    main()
