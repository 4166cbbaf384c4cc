"""docs/limits.md has the numbers of the code."""

import re
from pathlib import Path

from signer.api import guard, health, operation_service, server, signing_service, wire
from signer.audit.read import ledger
from signer.cbor import MAX_INTEGER
from signer.config import policy_files, strict_yaml
from signer.config.models import LimitsConfig
from signer.distinguished_name import _TYPES
from signer.formats import dcc, hcert_claims, jws, payloads, shc
from signer.keys.rows import _MAX_NUMBER
from signer.model import LARGEST_MESSAGE, MAX_BATCH_ITEMS, MESSAGE_BYTES
from signer.officers import approval, records
from signer.officers.kinds import certificates_import, enrolment_table, rotation
from signer.policy import document, json_schema
from signer.x509 import MAX_CERTIFICATE_BYTES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/limits.md").read_text()

CODE = {
    "Payloads of a batch": MAX_BATCH_ITEMS,
    "A message, in or out, by default": MESSAGE_BYTES,
    "A message, at most by configuration": LARGEST_MESSAGE,
    "Metadata of a call": dict(server._options(LimitsConfig()))["grpc.max_metadata_size"],
    "A call without a deadline": int(guard.DEFAULT_SECONDS),
    "Time in which a request id gives the same answer": ledger.REQUEST_LIFE_US // 3_600_000_000,
    "Entries of a page": wire.LARGEST_PAGE,
    "Field violations of an error": wire.MAX_VIOLATIONS,
    "Open watches of health": health.MAX_WATCHES,
    "A JWS payload": jws.MAX_BYTES,
    "An HCERT payload": dcc.MAX_BYTES,
    "A SHC bundle": shc.MAX_BYTES,
    "Commas and opening brackets of a JSON payload": payloads.MAX_VALUES,
    "Objects and lists inside each other": payloads.MAX_DEPTH,
    "Integers in JSON": MAX_INTEGER,
    "Validity of a health certificate": document.MAX_VALIDITY_DAYS,
    "Label of a health link": hcert_claims.MOST_LABEL,
    "Schemas inside a JSON schema of the policy": json_schema.MOST_PARTS,
    "Values of a payload that is compared with a JSON schema": json_schema.MOST_VALUES,
    "Number of a version": _MAX_NUMBER,
    "A name in a request": signing_service.MAX_NAME_BYTES,
    "Lines of an enrolment": enrolment_table.MAX_ROWS,
    "Keys of a rotation": rotation.MAX_KEYS,
    "Certificates of one call": operation_service.MOST_CERTIFICATES,
    "Authorities above a certificate": certificates_import.MAX_CHAIN,
    "A certificate": MAX_CERTIFICATE_BYTES,
    "Bytes that officers sign": approval.MAX_BYTES,
    "A signature": approval.MAX_SIGNATURE_BYTES,
    "A reason": records.MAX_REASON,
    "A document that the appliance returns": operation_service.MOST_ATTACHED,
    "`signer.yaml`, a client file": strict_yaml.MAX_CONFIG_BYTES,
    "All files of a policy": policy_files.MAX_POLICY_BYTES,
    "Mappings and lists inside each other in YAML": strict_yaml.MAX_DEPTH,
    "Problems that are reported at once": strict_yaml.MAX_PROBLEMS,
    "CN, O, OU of a subject": _TYPES["CN"][1],
    "L, ST, STREET of a subject": _TYPES["L"][1],
    "Ids of facilities, groups, profiles and keys": 63,  # of IDENTIFIER, see test_model.py
}


def test_the_numbers_are_those_of_the_code() -> None:
    rows = re.findall(r"(?m)^\| ([^|]+) \| (\d+) \| [^|]*\|$", PAGE)
    assert {name: int(number) for name, number in rows} == CODE
    assert len(rows) == len(CODE)
    assert _TYPES["O"][1] == _TYPES["OU"][1] == _TYPES["CN"][1]
    assert _TYPES["ST"][1] == _TYPES["STREET"][1] == _TYPES["L"][1]
    assert f"of one client {health.MAX_WATCHES_PER_CLIENT}" in PAGE
