"""The kind officers: changes who may sign operations."""

import base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from signer.errors import OperatorError
from signer.officers.approval import officers_sha256
from signer.officers.kinds.base import Details, Effects, OperationKind, Work
from signer.officers.kinds.certificates_import import decoded, read_any
from signer.officers.kinds.operation_context import OperationContext, OperationError, utc
from signer.officers.offline_check import MAX_OFFICERS_BYTES
from signer.officers.validity import DAY, Validity
from signer.policy.values import principals
from signer.text import count
from signer.x509 import is_authority, spki_of, uris_of


class ChangeOfficers(Details):
    """Certificates to add (PEM) and principals to remove; completed to all officers.

    ``officers`` has base64 of each certificate by principal; ``replaces`` names the officers
    before, ``in_force_since`` the revision that put those in force.
    """

    add: list[str] = Field(default_factory=list)
    remove: list[str] = Field(default_factory=list)
    officers: dict[str, str] = Field(default_factory=dict)
    replaces: str = ""
    in_force_since: int = 0


class ChangeOfficersKind(OperationKind[ChangeOfficers]):
    """Puts other officers in force."""

    name = "officers"
    details = ChangeOfficers

    def complete(self, details: ChangeOfficers, context: OperationContext) -> ChangeOfficers:
        before = context.state.officers
        if unknown := [who for who in details.remove if who not in before]:
            raise OperationError(*(f"remove: {who} is not an officer" for who in unknown))
        after = {who: der for who, der in before.items() if who not in details.remove}
        certificates = [read_any(pem.encode()) for pem in details.add]
        added = {principal_of(certificate): certificate for certificate in certificates}
        if len(added) < len(details.add):
            raise OperationError(
                "add: two certificates are for one officer: name the one that they sign with"
            )
        after |= {who: certificate.public_bytes(Encoding.DER) for who, certificate in added.items()}
        return ChangeOfficers(
            officers={who: base64.b64encode(der).decode() for who, der in after.items()},
            replaces=officers_sha256(before),
            in_force_since=context.state.officers_since,
        )

    def problems(self, details: ChangeOfficers, context: OperationContext) -> list[str]:
        if details.add or details.remove:
            return ["add and remove are only for preparing an operation"]
        seen = (details.replaces, details.in_force_since)
        if seen != (officers_sha256(context.state.officers), context.state.officers_since):
            return ["the officers have changed since this was proposed: propose it again"]
        if details.officers and certificates_of(details) == dict(context.state.officers):
            return ["these are the officers in force: add or remove somebody"]
        certificates = {who: decoded(text) for who, text in details.officers.items()}
        needed = max(context.needed.values())
        problems = []
        if len(certificates) < needed:
            problems.append(
                f"{count(len(certificates), 'officer is left', 'officers are left')};"
                f" operations need {needed}"
            )
        for who in _changed(details, context):
            problems += certificate_problems(who, certificates[who], context.now)
        if not problems and not Validity.of(certificates_of(details), context.now).valid:
            problems.append("no officer would have a valid certificate: nobody could sign anything")
        size = sum(len(who) + len(der) for who, der in certificates_of(details).items())
        if size > MAX_OFFICERS_BYTES:
            problems.append(f"all certificates have {size} bytes, at most {MAX_OFFICERS_BYTES}")
        problems += shared_keys(certificates)
        return problems + context.policy.policy.officer_problems(certificates)

    def difference(self, details: ChangeOfficers, context: OperationContext) -> list[str]:
        before, after = context.state.officers, certificates_of(details)
        changed = _changed(details, context)
        lines = [f"- {who}" for who in sorted(before.keys() - after.keys())]
        lines += [f"+ {_shown(who, after[who])}" for who in changed if who not in before]
        for who in changed:
            if who in before:
                lines += [f"~ {_shown(who, after[who])}", f"  before: {_shown(who, before[who])}"]
        return [*_warnings(after, changed, context), *lines]

    def execute(self, details: ChangeOfficers, work: Work) -> Effects:
        after = certificates_of(details)
        return Effects(
            officers=after,
            officers_since=work.context.stored.officers_since,
            result={"officers": sorted(after)},
        )


def first_officers(certificates: Mapping[str, bytes]) -> dict[str, bytes]:
    """Reads the certificates of the first officers (PEM or DER, by file name).

    Returns them in DER by principal. Raises OperatorError.
    """
    officers: dict[str, bytes] = {}
    now = datetime.now(UTC).timestamp()
    for name, data in certificates.items():
        try:
            certificate = read_any(data)
            who = principal_of(certificate)
        except OperationError as error:
            raise OperatorError(f"{name}: {error}") from None
        if problems := certificate_problems(who, certificate, now):
            raise OperatorError(f"{name}: {problems[0]}")
        if who in officers:
            raise OperatorError(f"{name}: {who} has another certificate here already")
        officers[who] = certificate.public_bytes(Encoding.DER)
    loaded = {who: x509.load_der_x509_certificate(der) for who, der in officers.items()}
    if problems := shared_keys(loaded):
        raise OperatorError(problems[0])
    return officers


def shared_keys(certificates: Mapping[str, x509.Certificate]) -> list[str]:
    """Returns the officers who share a key: its holder would count twice."""
    holders: dict[bytes, str] = {}
    problems = []
    for who, certificate in certificates.items():
        other = holders.setdefault(spki_of(certificate.public_key()), who)
        if other != who:
            problems.append(f"{other} and {who} have the same key: each needs one of their own")
    return problems


def principal_of(certificate: x509.Certificate) -> str:
    """Returns the one URI of an officer's certificate; raises OperationError."""
    uris = uris_of(certificate)
    if len(uris) != 1:
        raise OperationError(
            f"an officer's certificate has exactly one URI; this one has {len(uris)}"
        )
    try:
        [who] = principals(uris)
    except ValueError as error:
        raise OperationError(f"the URI of an officer's certificate: {error}") from None
    return who


def certificate_problems(who: str, certificate: x509.Certificate, now: float) -> list[str]:
    """Returns why operations cannot be signed with the key of a certificate."""
    problems = []
    if principal_of(certificate) != who:
        problems.append(f"the certificate of {who} is for another principal")
    if not isinstance(
        certificate.public_key(),
        ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey,
    ):
        problems.append(f"the key of {who} must be ECDSA, RSA or Ed25519")
    if is_authority(certificate):
        problems.append(f"the certificate of {who} is that of an authority: use one of their own")
    if now > certificate.not_valid_after_utc.timestamp():
        problems.append(f"the certificate of {who} has expired")
    if now < certificate.not_valid_before_utc.timestamp():
        problems.append(f"the certificate of {who} is not valid yet: they could not sign")
    return problems


def certificates_of(details: ChangeOfficers) -> dict[str, bytes]:
    """Returns the officers that an operation of this kind puts in force."""
    return {who: decoded(text).public_bytes(Encoding.DER) for who, text in details.officers.items()}


def _changed(details: ChangeOfficers, context: OperationContext) -> list[str]:
    """Returns the officers who are new or get another certificate."""
    before, after = context.state.officers, certificates_of(details)
    return sorted(who for who in after if after[who] != before.get(who))


def _warnings(
    after: Mapping[str, bytes], changed: Sequence[str], context: OperationContext
) -> list[str]:
    """Returns what officers must not overlook: certificates that end, or have ended."""
    validity, needed = Validity.of(after, context.now), max(context.needed.values())
    lines = []
    if len(validity.valid) < needed:
        have = count(len(validity.valid), "officer has", "officers have")
        lines.append(f"! only {have} a valid certificate after this; operations need {needed}")
    lines += [
        f"! the certificate of {who} has ended: renew it, or remove the officer"
        for who in sorted(validity.ended)
    ]
    lines += [
        f"! the certificate of {who} ends in {count(int((end - context.now) // DAY), 'day')}"
        for who, end in validity.ending
        if who in changed
    ]
    return lines


def _shown(who: str, der: bytes) -> str:
    certificate = x509.load_der_x509_certificate(der)
    number, issuer = certificate.serial_number, certificate.issuer.rfc4514_string()
    ends = utc(certificate.not_valid_after_utc.timestamp())
    return f"{who}, certificate {number:x} of {issuer}, valid until {ends}"
