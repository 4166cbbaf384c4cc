"""What officers sign: the canonical bytes of an operation, and who has signed them.

Pure, and used on both sides: the server accepts signatures with these functions, and an
offline check of the audit log uses the same ones. The proposer's signature is the first; an
operation takes effect when ``officers`` different officers have signed the same bytes.

The bytes are text, so that officers can read what they sign with any program: the line
``signer.v1 approval``, the origin of the log, the operation's id, a line with the deployment's
id, and JSON with its members in order, two spaces a level and ASCII only. Older operations have
no line of the deployment; they are read, and nothing new is done with them.
"""

import hashlib
import json
import re
import uuid
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from signer.errors import CallError, OperatorError, Reason
from signer.text import count, utc

FIRST_LINE = "signer.v1 approval"
DEPLOYMENT = "deployment "  # begins the line with the deployment's id
MAX_BYTES = 1 << 20  # of an operation; longer content is stored beside it, named by its SHA-256
MAX_DEPTH = 16  # of JSON: with two spaces a level on every line, depth costs as much as length
MAX_NUMBER = 1 << 53  # integers below it are the same in every program that reads JSON
MAX_SIGNATURE_BYTES = 1024
LATE = 300  # seconds after its end by which an operation that began in time is done, or begun here
APART = 300  # seconds by which the clocks of two appliances on one registry may be apart
SKEW = 5  # seconds that a signature may seem to be before its proposal
CLOCK = "clock"  # the kind whose signatures have the earlier of two times in doubt
FEWEST_OFFICERS = 2  # the lowest number of officers for an operation

_MEMBERS = frozenset({"kind", "proposer", "proposed_at", "expires_at", "officers", "details"})
_KIND = re.compile(r"[a-z]+(-[a-z]+)*")
_DEPLOYMENT = re.compile("[0-9a-f]{32}")


class ApprovalError(OperatorError):
    """Bytes that are not an operation, or a signature that does not count; says why."""

    def answer(self) -> CallError:
        return CallError(Reason.APPROVAL_INVALID, str(self))


@dataclass(frozen=True, slots=True)
class Proposal:
    """An operation as it was proposed. Times are whole seconds since the epoch.

    ``officers`` is the number who must sign, the proposer included. ``deployment`` is the id of
    the appliances for which it is, empty in operations from before there was one.
    """

    origin: str
    id: str
    kind: str
    proposer: str
    proposed_at: int
    expires_at: int
    officers: int
    details: Mapping[str, Any]
    deployment: str = ""

    def canonical(self) -> bytes:
        """Returns the bytes to sign."""
        members = {name: getattr(self, name) for name in sorted(_MEMBERS)}
        text = json.dumps(members, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False)
        head = [FIRST_LINE, self.origin, self.id]
        if self.deployment:
            head.append(f"{DEPLOYMENT}{self.deployment}")
        return "\n".join([*head, text, ""]).encode()


def parse(data: bytes) -> Proposal:
    """Reads an operation from its one encoding; raises ApprovalError."""
    if len(data) > MAX_BYTES:
        raise ApprovalError(f"an operation of {len(data)} bytes is longer than {MAX_BYTES}")
    try:
        proposal = _read(data)
        again = proposal.canonical()
    except (ValueError, TypeError, RecursionError, AttributeError):
        raise ApprovalError("these bytes are not an operation") from None
    if again != data:
        raise ApprovalError("the operation is not in its canonical form")
    return proposal


def _read(data: bytes) -> Proposal:
    first, origin, identity, text = data.decode("ascii").split("\n", 3)
    deployment = ""
    if text.startswith(DEPLOYMENT):
        line, text = text.split("\n", 1)
        deployment = line.removeprefix(DEPLOYMENT)
        if not _DEPLOYMENT.fullmatch(deployment):
            raise ValueError
    members = json.loads(text, parse_float=_refused, parse_constant=_refused)
    if first != FIRST_LINE or set(members) != _MEMBERS or str(uuid.UUID(identity)) != identity:
        raise ValueError
    if not origin or not origin.isprintable():  # an officer reads it on a terminal
        raise ValueError
    proposal = Proposal(origin=origin, id=identity, deployment=deployment, **members)
    _check_types(proposal)
    _check_values(members)
    return proposal


def _refused(number: str) -> NoReturn:
    """Fractions, exponents and NaN have no encoding that all programs share."""
    raise ValueError(number)


def _check_values(value: object, depth: int = MAX_DEPTH) -> None:
    """Refuses JSON that is nested too deep, and text that UTF-8 cannot encode."""
    match value:
        case dict():
            members: list[object] = [*value, *value.values()]
        case list():
            members = value
        case str():
            value.encode()  # fails at half a surrogate pair
            return
        case _:
            return
    if not depth:
        raise ApprovalError(f"an operation nests its members at most {MAX_DEPTH} deep")
    for member in members:
        _check_values(member, depth - 1)


def _check_types(proposal: Proposal) -> None:
    numbers = (proposal.proposed_at, proposal.expires_at, proposal.officers)
    if not (
        isinstance(proposal.kind, str)
        and _KIND.fullmatch(proposal.kind)
        and isinstance(proposal.proposer, str)
        and isinstance(proposal.details, dict)
        and all(type(number) is int and 0 <= number < MAX_NUMBER for number in numbers)
    ):
        raise ApprovalError("a member of the operation has another type")
    if proposal.officers < FEWEST_OFFICERS:
        raise ApprovalError(f"an operation needs at least {FEWEST_OFFICERS} officers")


class Signature(NamedTuple):
    """One officer's signature over an operation's bytes."""

    officer: str
    signature: bytes
    at: float


Officers = Mapping[str, bytes]  # certificates (DER) by principal


def check_signature(
    data: bytes,
    signature: Signature,
    officers: Officers,
    at: float,
    proposal: Proposal | None = None,
) -> None:
    """Checks that a signature is by an officer whose certificate is valid at ``at``.

    ``proposal`` is the operation of these bytes: one that only renews certificates that have
    ended may be signed with the key of such a certificate, too. The certificate's key decides:
    ECDSA with SHA-256 (DER), RSA PKCS #1 v1.5 with SHA-256, or Ed25519, as ``openssl dgst
    -sha256 -sign`` and ``openssl pkeyutl -sign -rawin`` make them.
    Raises ApprovalError.
    """
    der = officers.get(signature.officer)
    if der is None:
        raise ApprovalError(f"{signature.officer} is not an officer")
    try:
        certificate = x509.load_der_x509_certificate(der)
    except ValueError:
        raise ApprovalError(f"the certificate of {signature.officer} is not valid DER") from None
    ends = certificate.not_valid_after_utc.timestamp()
    if not certificate.not_valid_before_utc.timestamp() <= at:  # refuses NaN, too
        raise ApprovalError(f"the certificate of {signature.officer} is not valid yet")
    if at > ends and not (proposal is not None and renews(proposal, officers, at)):
        raise ApprovalError(
            f"the certificate of {signature.officer} ended on {utc(ends)}: its key only signs"
            " an operation that renews such certificates and changes nothing else"
        )
    if not _verified(certificate, data, signature.signature):
        raise ApprovalError(
            f"the signature is not by {signature.officer} over this operation's bytes"
        )


def _verified(certificate: x509.Certificate, data: bytes, signature: bytes) -> bool:
    if len(signature) > MAX_SIGNATURE_BYTES:
        return False
    try:
        match certificate.public_key():
            case ec.EllipticCurvePublicKey() as key:
                key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey() as key:
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            case ed25519.Ed25519PublicKey() as key:
                key.verify(signature, data)
            case _:
                return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


def renews(proposal: Proposal, officers: Officers, at: float) -> bool:
    """Whether an operation changes nothing but certificates that have ended at ``at``.

    The officers stay the same people: nobody is added, nobody is removed.
    """
    after = proposal.details.get("officers")
    if proposal.kind != "officers" or not isinstance(after, dict):
        return False
    replaced = [der for who, der in officers.items() if after.get(who) != b64encode(der).decode()]
    return after.keys() == officers.keys() and all(_ended(der, at) for der in replaced)


def _ended(der: bytes, at: float) -> bool:
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() < at


def valid_signers(
    data: bytes,
    signatures: Iterable[Signature],
    officers: Officers,
    proposal: Proposal | None = None,
) -> frozenset[str]:
    """Returns the officers whose signatures are valid, each once; see ``check_signature``."""
    signers = set()
    for signature in signatures:
        try:
            check_signature(data, signature, officers, signature.at, proposal)
        except ApprovalError:
            continue
        signers.add(signature.officer)
    return frozenset(signers)


def enough(
    proposal: Proposal, data: bytes, signatures: Sequence[Signature], officers: Officers
) -> bool:
    """Whether so many officers have signed as the operation needs.

    One of them at least has a certificate that is valid: the others may be renewing theirs.
    """
    signers = valid_signers(data, signatures, officers, proposal)
    return len(signers) >= proposal.officers and bool(valid_signers(data, signatures, officers))


def check_approved(
    proposal: Proposal, data: bytes, signatures: Iterable[Signature], officers: Officers
) -> None:
    """Checks that enough different officers have signed, in time. Raises ApprovalError.

    The times of signatures are not signed, and anyone with SQL can write them. So they count
    only within the time that the signed bytes give.
    """
    begins = proposal.proposed_at - SKEW if proposal.kind != CLOCK else 0
    in_time = [s for s in signatures if begins <= s.at < proposal.expires_at]
    signers = valid_signers(data, in_time, officers, proposal)
    if proposal.proposer not in signers:
        raise ApprovalError(
            f"its proposer {proposal.proposer} has not validly signed operation {proposal.id}"
        )
    if len(signers) < proposal.officers:
        raise ApprovalError(
            f"{len(signers)} of {proposal.officers} required signatures of officers are valid"
            f" for operation {proposal.id}"
        )
    if not enough(proposal, data, in_time, officers):
        raise ApprovalError(
            f"only officers whose certificates have ended have signed operation {proposal.id}:"
            " one whose certificate is valid must sign it, too"
        )


def check_needed(proposal: Proposal, needed: Mapping[str, int]) -> None:
    """Checks that an operation asks for as many officers as its kind needs. Raises ApprovalError.

    The number in its bytes was the one that was configured when it was proposed.
    """
    least = needed.get(proposal.kind, FEWEST_OFFICERS)
    if proposal.officers < least:
        raise ApprovalError(
            f"operation {proposal.id} asks for {count(proposal.officers, 'officer')}, and"
            f" {proposal.kind} needs {least} here: propose it again"
        )


def check_deployment(proposal: Proposal, deployment: str) -> None:
    """Checks that an operation is for the appliances of a deployment. Raises ApprovalError."""
    if proposal.deployment != deployment:
        said = proposal.deployment or "none"
        raise ApprovalError(
            f"operation {proposal.id} is for another deployment ({said}), this one is"
            f" {deployment or 'none'}: propose it again here"
        )


def check_origin(proposal: Proposal, origin: str) -> None:
    """Checks that an operation on a clock is for the appliance of a log. Raises ApprovalError.

    Other operations are for all appliances of a deployment.
    """
    if proposal.kind == CLOCK and proposal.origin != origin:
        raise ApprovalError(
            f"operation {proposal.id} is about the clock of {proposal.origin}, and this is"
            f" {origin}: sign it there"
        )


def officers_sha256(officers: Officers) -> str:
    """Returns a SHA-256 that names a set of officers and their certificates."""
    lines = [f"{who} {hashlib.sha256(der).hexdigest()}" for who, der in sorted(officers.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
