"""The transcript of a key ceremony: what it says, and the checks of it. Pure but for files.

Both officers sign the very bytes of ``transcript.json``, with the keys that sign
operations. It holds the bytes that they approved and their signatures over those, so that
an auditor needs nothing but the folder and the officers' certificates.
"""

from __future__ import annotations

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
from signer.client import Operation
from signer.errors import OperatorError
from signer.officers import approval
from signer.officers.approval import ApprovalError, Proposal, Signature
from signer.x509 import spki_of

FORMAT = "signer.v1 key ceremony"
FILE = "transcript.json"
REQUEST = "request.csr"
MAX_BYTES = 1 << 20

_DEMANDED = {"sensitive": True, "extractable": False}
"""What a private key must be by the attributes that were read back (PKCS #11, section 4.9)."""


def make(
    operation: Operation,
    participants: Mapping[str, bytes],
    witnesses: Sequence[str],
    times: Mapping[str, datetime | None],
    software: str,
) -> bytes:
    """Returns the bytes of a transcript.

    ``participants`` have the certificates (DER) of those who sign it. The same arguments
    give the same bytes.
    """
    members = {
        "format": FORMAT,
        "operation": operation.id,
        "approved": operation.content.decode("ascii"),
        "approvals": [
            {
                "officer": each.officer,
                "signature": base64.b64encode(each.signature).decode(),
                "time": iso(each.signed),
            }
            for each in operation.signatures
        ],
        "participants": [
            {
                "officer": who,
                "certificate_sha256": hashlib.sha256(der).hexdigest(),
                "signature_file": signature_file(who),
            }
            for who, der in sorted(participants.items())
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

    Returns its members. Raises OperatorError with everything that is wrong: who has not
    signed it, that it holds no approved operation, or that the key is another than that.
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
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise OperatorError(f"{path} is longer than {MAX_BYTES} bytes")
    return data


def _members(data: bytes) -> dict[str, Any]:
    """Reads a transcript as ``make`` writes it; raises OperatorError."""
    try:
        members = json.loads(data)
        texts = [members["format"], members["operation"], members["approved"]]
        texts += [each[name] for each in members["approvals"] for name in ("officer", "time")]
        texts += [each["officer"] for each in members["participants"]]
        fits = all(isinstance(text, str) for text in texts) and _encoded(members) == data
    except (ValueError, TypeError, KeyError, RecursionError):
        fits = False
    if not fits or members["format"] != FORMAT:
        raise OperatorError(f"{FILE} is no transcript as `signer ceremony` writes it")
    return dict(members)


def _signature_problems(
    folder: Path, data: bytes, members: Mapping[str, Any], officers: Mapping[str, bytes]
) -> list[str]:
    problems = []
    signers = {each["officer"] for each in members["participants"]}
    if len(signers) < approval.FEWEST_OFFICERS:
        problems.append(f"it names {len(signers)} participants, expected two")
    try:
        at = datetime.fromisoformat(members["times"]["made"]).timestamp()
    except (TypeError, KeyError, ValueError):
        return [*problems, "it does not say when the key was made"]
    for who in sorted(signers):
        if who not in officers:
            problems.append(f"{who} took part: give that certificate too, with --officer")
            continue
        try:
            signature = _read(folder / signature_file(who))
            approval.check_signature(data, Signature(who, signature, at), officers, at)
        except OperatorError as error:
            problems.append(str(error))
        except ApprovalError:
            problems.append(f"{signature_file(who)} is no signature by {who} over {FILE}")
    return problems


def _approval_problems(members: Mapping[str, Any], officers: Mapping[str, bytes]) -> list[str]:
    """Checks that it holds the canonical bytes of an operation, signed by enough officers."""
    try:
        content = members["approved"].encode("ascii")
        proposal = approval.parse(content)
        signatures = [
            Signature(
                each["officer"],
                base64.b64decode(each["signature"], validate=True),
                datetime.fromisoformat(each["time"]).timestamp(),
            )
            for each in members["approvals"]
        ]
        approval.check_approved(proposal, content, signatures, officers)
    except (ApprovalError, ValueError, TypeError, KeyError, binascii.Error) as error:
        return [f"the approval in it does not hold: {error}"]
    took_part = {each["officer"] for each in members["participants"]}
    signed = approval.valid_signers(content, signatures, officers)
    problems = []
    if not took_part <= signed:
        problems.append(f"{', '.join(sorted(took_part - signed))} did not approve the operation")
    if proposal.id != members["operation"]:
        problems.append(f"it is of operation {members['operation']}, approved was {proposal.id}")
    return problems


def result_problems(members: Mapping[str, Any]) -> list[str]:
    """Returns where the key that was made is not the one that was approved."""
    try:
        proposal = approval.parse(members["approved"].encode("ascii"))
    except (ApprovalError, ValueError):
        return []  # told by the check of the approval
    result, details = members.get("result"), proposal.details
    if proposal.kind != "create-key" or not isinstance(result, dict):
        return ["it is not about a key that was made"]
    problems = []
    if result.get("key_version") != f"{details.get('key')}/versions/1":
        problems.append(f"it made {result.get('key_version')}, approved was {details.get('key')}")
    if result.get("algorithm") != details.get("algorithm"):
        problems.append(f"the algorithm is {result.get('algorithm')}, not the approved one")
    attributes = result.get("attributes")
    for name, value in _DEMANDED.items():
        if not isinstance(attributes, dict) or attributes.get(name) is not value:
            problems.append(f"the private key's attribute {name} was not read back as {value}")
    return problems + _request_problems(result, proposal)


def _request_problems(result: Mapping[str, Any], proposal: Proposal) -> list[str]:
    request, subject = result.get("certification_request"), proposal.details.get("subject")
    if not request and not subject:
        return []
    try:
        read = x509.load_pem_x509_csr(str(request).encode())
        spki = spki_of(read.public_key())
        signed, name = read.is_signature_valid, x509.Name.from_rfc4514_string(str(subject))
    except (ValueError, TypeError):
        return ["there is no certification request in it that can be read"]
    problems = []
    if not signed or hashlib.sha256(spki).hexdigest() != result.get("public_key_sha256"):
        problems.append("the certification request is not signed by the key that was made")
    if read.subject != name:
        problems.append(f"the certification request is not for {subject}")
    return problems
