"""Verifies time-stamps with rfc3161-client; shares no code with the appliance.

Usage: verify_timestamp.py ROOT.pem < time-stamps (one a line: the document and the answer
of the appliance, both in Base64, with a space between them). The answer contains the
certificate of the key. Prints one JSON object a line: time and policy that were verified, or
why the time-stamp is `refused`. Ends with status 1 if one was.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from cryptography import x509
from rfc3161_client import VerifierBuilder, decode_timestamp_response


def verified(line: str, root: x509.Certificate) -> dict[str, Any]:
    document, answer = (base64.b64decode(part, validate=True) for part in line.split(" "))
    response = decode_timestamp_response(answer)
    verifier = VerifierBuilder(roots=[root]).build()
    verifier.verify_message(response, document)
    info = response.tst_info
    return {"time": info.gen_time.isoformat(), "policy": info.policy.dotted_string}


def main() -> None:
    root = x509.load_pem_x509_certificate(Path(sys.argv[1]).read_bytes())
    refused = False
    for line in sys.stdin:
        try:
            verdict = verified(line.rstrip("\n"), root)
        except Exception as error:  # noqa: BLE001 - whatever the package raises
            verdict, refused = {"refused": f"{type(error).__name__}: {error}"}, True
        sys.stdout.write(json.dumps(verdict) + "\n")
        sys.stdout.flush()
    sys.exit(refused)


if __name__ == "__main__":
    main()
