"""The transcript of a key ceremony: its content and its checks. Pure, except for files.

Both officers sign the bytes of ``transcript.json`` with the keys that sign operations.
It contains the bytes that they approved and their signatures over those, so that an
auditor needs only the folder and the officers' certificates.
"""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from signer.cli.operations.arguments import iso
from signer.cli.output import explained
from signer.client import Operation
from signer.distinguished_name import parse_name
from signer.errors import OperatorError
from signer.officers import approval
from signer.officers.approval import ApprovalError, Proposal, Signature
from signer.text import count
from signer.x509 import spki_of

FORMAT = "signer.v1 key ceremony"
FILE = "transcript.json"
REQUEST = "request.csr"
MAX_BYTES = 1 << 20


def make(
    operation: Operation,
    participants: Mapping[str, bytes],
    witnesses: Sequence[str],
    times: Mapping[str, datetime | None],
    software: str,
) -> bytes:
    """Returns the bytes of a transcript.

    ``participants`` are the officers who sign it, with their certificates (DER). The same
    arguments give the same bytes.
    """
    members = {
        "format": FORMAT,
        "operation": operation.id,
        "approved": operation.content.decode("ascii"),
        "approvals": [
            {
                "officer": approved.officer,
                "signature": base64.b64encode(approved.signature).decode(),
                "time": iso(approved.signed),
            }
            for approved in operation.signatures
        ],
        "participants": [
            {
                "officer": principal,
                "certificate_sha256": hashlib.sha256(der).hexdigest(),
                "signature_file": signature_file(principal),
            }
            for principal, der in sorted(participants.items())
        ],
        "witnesses": list(witnesses),
        "result": operation.result,
        "times": {name: iso(moment) for name, moment in times.items()},
        "software": software,
    }
    return _encoded(members)


def _encoded(members: Mapping[str, Any]) -> bytes:
    return (json.dumps(members, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def signature_file(officer: str) -> str:
    """Returns the name of the file with an officer's signature over the transcript."""
    short = officer.partition("://")[2] or officer
    return f"transcript.{re.sub('[^A-Za-z0-9.-]+', '_', short)}.sig"


def verify(folder: Path, officers: Mapping[str, bytes]) -> dict[str, Any]:
    """Checks a transcript with the certificates (DER) of officers, by principal.

    Returns its members. Raises OperatorError with everything that is wrong: missing
    signatures, an operation that was not approved, or another key than the approved one.
    """
    data = _read(folder / FILE)
    members = _members(data)
    problems = [
        *_signature_problems(folder, data, members, officers),
        *_approval_problems(members, officers),
        *result_problems(members),
    ]
    if problems:
        raise OperatorError("the transcript is not in order:\n  " + "\n  ".join(problems))
    return members


def _read(path: Path) -> bytes:
    with explained(path, "read"), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OperatorError(f"{path} is longer than {MAX_BYTES} bytes")
    return data


def _members(data: bytes) -> dict[str, Any]:
    """Reads a transcript as ``make`` writes it; raises OperatorError."""
    try:
        members = json.loads(data)
        texts = [members["format"], members["operation"], members["approved"]]
        texts += [one[name] for one in members["approvals"] for name in ("officer", "time")]
        texts += [one["officer"] for one in members["participants"]]
        fits = all(isinstance(text, str) for text in texts) and _encoded(members) == data
    except (ValueError, TypeError, KeyError, RecursionError):
        fits = False
    if not fits or members["format"] != FORMAT:
        raise OperatorError(f"{FILE} was not written by `signer ceremony`")
    return dict(members)


def _signature_problems(
    folder: Path, data: bytes, members: Mapping[str, Any], officers: Mapping[str, bytes]
) -> list[str]:
    problems = []
    signers = {one["officer"] for one in members["participants"]}
    if len(signers) < approval.FEWEST_OFFICERS:
        problems.append(f"it names {count(len(signers), 'participant')}, expected two")
    try:
        at = datetime.fromisoformat(members["times"]["made"]).timestamp()
    except (TypeError, KeyError, ValueError):
        return [*problems, "it does not say when the key was created"]
    for principal in sorted(signers):
        if principal not in officers:
            problems.append(f"{principal} took part: give that certificate too, with --officer")
            continue
        try:
            signature = _read(folder / signature_file(principal))
            approval.check_signature(data, Signature(principal, signature, at), officers, at)
        except OperatorError as error:
            problems.append(str(error))
        except ApprovalError:
            name = signature_file(principal)
            problems.append(f"{name} is not a valid signature of {principal} over {FILE}")
    return problems


def _approval_problems(members: Mapping[str, Any], officers: Mapping[str, bytes]) -> list[str]:
    """Checks that it has the canonical bytes of an operation, signed by enough officers."""
    try:
        content = members["approved"].encode("ascii")
        proposal = approval.parse(content)
        signatures = [
            Signature(
                one["officer"],
                base64.b64decode(one["signature"], validate=True),
                datetime.fromisoformat(one["time"]).timestamp(),
            )
            for one in members["approvals"]
        ]
        approval.check_approved(proposal, content, signatures, officers)
    except (ApprovalError, ValueError, TypeError, KeyError, binascii.Error) as error:
        return [f"its approval is not valid: {error}"]
    took_part = {one["officer"] for one in members["participants"]}
    signed = approval.valid_signers(content, signatures, officers)
    problems = []
    if not took_part <= signed:
        problems.append(f"{', '.join(sorted(took_part - signed))} did not approve the operation")
    if proposal.id != members["operation"]:
        problems.append(f"its operation is {members['operation']}, but {proposal.id} was approved")
    return problems


def result_problems(members: Mapping[str, Any]) -> list[str]:
    """Returns the differences between the created key and the approved one."""
    try:
        proposal = approval.parse(members["approved"].encode("ascii"))
    except (ApprovalError, ValueError):
        return []  # the check of the approval reports it
    result, details = members.get("result"), proposal.details
    if proposal.kind != "create-key" or not isinstance(result, dict):
        return ["it does not describe a key that was created"]
    problems = []
    if result.get("key_version") != f"{details.get('key')}/versions/1":
        problems.append(f"it created {result.get('key_version')}, approved: {details.get('key')}")
    if result.get("algorithm") != details.get("algorithm"):
        problems.append(f"the algorithm is {result.get('algorithm')}, not the approved one")
    attributes = result.get("attributes")
    for name, value in (("sensitive", True), ("extractable", False)):  # PKCS #11, section 4.9
        if not isinstance(attributes, dict) or attributes.get(name) is not value:
            problems.append(f"the token did not report the private key's {name} as {value}")
    return problems + _request_problems(result, proposal)


def _request_problems(result: Mapping[str, Any], proposal: Proposal) -> list[str]:
    request, subject = result.get("certification_request"), proposal.details.get("subject")
    if not request and not subject:
        return []
    try:
        read = x509.load_pem_x509_csr(str(request).encode())
        spki = spki_of(read.public_key())
        signed, name = read.is_signature_valid, parse_name(str(subject))
    except (ValueError, TypeError):
        return ["its certification request cannot be read"]
    problems = []
    if not signed or hashlib.sha256(spki).hexdigest() != result.get("public_key_sha256"):
        problems.append("the certification request is not signed by the key that was created")
    if read.subject != name:
        problems.append(f"the certification request is not for {subject}")
    return problems
