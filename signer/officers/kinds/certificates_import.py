"""The kind import-certificate, and the checks of a key's certificate and its issuers."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import Field

from signer.errors import OperatorError
from signer.formats.hcert import DCC_USAGES
from signer.keys.writing import Change
from signer.model import KeyState, KeyVersion
from signer.officers.kinds.base import Details, Effects, OperationKind, Work, found_problems
from signer.officers.kinds.create_key import hcert_terms
from signer.officers.kinds.operation_context import (
    OperationContext,
    OperationError,
    basis_problems,
    utc,
)
from signer.text import duration
from signer.x509 import certified, extended_key_usages, is_authority, read_certificate

MAX_CHAIN = 5


class ImportCertificate(Details):
    """A version's certificate and its issuers', nearest first: PEM, completed to base64 of DER.

    ``basis`` has the state of the version, as officers saw it; empty in older operations.
    """

    version: str
    certificate: str
    issuers: list[str]
    replace: bool = False
    basis: dict[str, str] = Field(default_factory=dict)


class ImportCertificateKind(OperationKind[ImportCertificate]):
    """Stores a certificate that an outside authority has issued."""

    name = "import-certificate"
    details = ImportCertificate

    def complete(self, details: ImportCertificate, context: OperationContext) -> ImportCertificate:
        certificate, issuers = encoded(details.certificate), list(map(encoded, details.issuers))
        basis = _basis(details, context)
        return details.model_copy(
            update={"certificate": certificate, "issuers": issuers, "basis": basis}
        )

    def problems(self, details: ImportCertificate, context: OperationContext) -> list[str]:
        version = context.version(details.version)
        certificate, issuers = decoded(details.certificate), list(map(decoded, details.issuers))
        if details.basis and (changed := basis_problems(details.basis, _basis(details, context))):
            return changed
        return [
            *_state_problems(version, context),
            *certificate_problems(version, certificate, issuers, context),
            *found_problems(lambda: _certified(details, context)),
            *_outlived_problems(version, certificate, context),
        ]

    def difference(self, details: ImportCertificate, context: OperationContext) -> list[str]:
        version, after = context.version(details.version), _certified(details, context)
        certificate = decoded(details.certificate)
        lines = [
            f"~ {version.name} gets a certificate",
            f"  subject {certificate.subject.rfc4514_string()}",
            f"  issuer  {certificate.issuer.rfc4514_string()}",
            f"  valid   from {utc(certificate.not_valid_before_utc.timestamp())}",
            f"          to {utc(certificate.not_valid_after_utc.timestamp())}",
            f"  kid     {version.kid.hex()} becomes {after.kid.hex()}",
        ]
        if version.certificate is not None:
            lines.append("! it has another certificate: verifiers must know the new one first")
        return lines

    def execute(self, details: ImportCertificate, work: Work) -> Effects:
        version, after = work.context.version(details.version), _certified(details, work.context)
        result = {"key_version": version.name, "kid": after.kid.hex()}
        return Effects(changes=[Change(version, after)], result=result)


def certificate_problems(
    version: KeyVersion,
    certificate: x509.Certificate,
    issuers: Sequence[x509.Certificate],
    context: OperationContext,
) -> list[str]:
    """Returns what is wrong with a certificate's chain and its extended key usages."""
    problems = chain_problems(certificate, issuers, context.now)
    usages = extended_key_usages(certificate)
    if hcert_terms(version.key, context) and usages and not DCC_USAGES.keys() & set(usages):
        problems.append(
            "its extended key usages have none for health certificates (1.3.6.1.4.1.1847.2021.1.*)"
        )
    return problems


def chain_problems(
    certificate: x509.Certificate, issuers: Sequence[x509.Certificate], now: float
) -> list[str]:
    """Returns why the first issuer has not issued a certificate, the next one the first, and so on.

    Every issuer must be an authority and valid at ``now`` (RFC 5280 section 6.1, without
    names and policies: officers approve the issuers one by one).
    """
    if not 1 <= len(issuers) <= MAX_CHAIN:
        return [f"issuers: name the authority and those above it, 1 to {MAX_CHAIN} in all"]
    first, *above = issuers
    return [*_issued_problems(certificate, first), *issuer_problems(first, above, now)]


def issuer_problems(
    issuer: x509.Certificate, above: Sequence[x509.Certificate], now: float
) -> list[str]:
    """Returns why an issuer cannot certify at ``now``, or the chain above it does not hold."""
    problems = []
    moment = datetime.fromtimestamp(now, UTC)
    for authority in (issuer, *above):
        name = authority.subject.rfc4514_string()
        if not is_authority(authority):
            problems.append(f"{name} is not an authority: its certificate is not a CA certificate")
        if not authority.not_valid_before_utc <= moment <= authority.not_valid_after_utc:
            problems.append(f"the certificate of {name} is not valid now")
    for child, parent in pairwise((issuer, *above)):
        problems += _issued_problems(child, parent)
    return problems


def _issued_problems(child: x509.Certificate, parent: x509.Certificate) -> list[str]:
    """Returns why ``parent`` has not issued ``child``: by its name, or by its key."""
    name, issuer = parent.subject.rfc4514_string(), child.issuer.rfc4514_string()
    problem = f"{child.subject.rfc4514_string()} was not issued by {name}"
    if issuer != name:
        return [f"{problem}: it names {issuer} as its issuer"]
    if child.issuer.public_bytes() != parent.subject.public_bytes():
        return [f"{problem}: it writes the issuer's name with another type of string"]
    try:
        child.verify_directly_issued_by(parent)
    except InvalidSignature:
        return [f"{problem}: its signature is by another key of that name"]
    except UnsupportedAlgorithm:
        return [f"{problem}: its signature algorithm is not accepted (SHA-1 is not)"]
    except (ValueError, TypeError):
        return [f"{problem}: its signature cannot be verified with that key"]
    return []


def read_any(data: bytes) -> x509.Certificate:
    """Reads one certificate from PEM or DER and every part of it; raises OperationError."""
    try:
        certificate = read_certificate(data)
    except OperatorError as error:
        raise OperationError(str(error)) from None
    try:
        # The library parses these parts on access, and raises then.
        certificate.public_key()
        names = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
        times = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        del names, times
        list(certificate.extensions)
    except x509.DuplicateExtension as error:
        raise OperationError(f"the certificate has the extension {error.oid} twice") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise OperationError(
            f"the certificate has {_unreadable(certificate)}, which cannot be read as RFC 5280 and"
            " DER define it: ask its authority for another one"
        ) from None
    return certificate


_EXTENSIONS = {  # RFC 5280 section 4.2.1: the last number of 2.5.29.n, and its name
    14: "subjectKeyIdentifier",
    15: "keyUsage",
    17: "subjectAltName",
    18: "issuerAltName",
    19: "basicConstraints",
    30: "nameConstraints",
    31: "cRLDistributionPoints",
    32: "certificatePolicies",
    33: "policyMappings",
    35: "authorityKeyIdentifier",
    36: "policyConstraints",
    37: "extKeyUsage",
    54: "inhibitAnyPolicy",
}
_OID = bytes.fromhex("0603551d")  # the DER of 2.5.29.n without n


def _unreadable(certificate: x509.Certificate) -> str:
    """Names the extension that the library does not read, or says that it is another part.

    The library reads no extension that it does not know: the one is at fault without which, or
    without which and those before, all can be read.
    """
    der = certificate.public_bytes(Encoding.DER)
    for number, name in _EXTENSIONS.items():
        der = der.replace(_OID + bytes([number]), _OID + b"\x7f")
        try:
            list(x509.load_der_x509_certificate(der).extensions)
        except x509.DuplicateExtension:
            pass  # two are unknown now
        except (ValueError, TypeError):
            continue
        return f"the extension {name}"
    return "a part"


def encoded(pem: str) -> str:
    """Returns a certificate as details hold it: base64 of its DER. Raises OperationError."""
    return base64.b64encode(read_any(pem.encode()).public_bytes(Encoding.DER)).decode()


def decoded(text: str) -> x509.Certificate:
    """Reads what ``encoded`` returns; raises OperationError."""
    try:
        return read_any(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error):
        raise OperationError("a certificate is not base64 of its DER") from None


def activation_problems(
    version: KeyVersion, at: float, sign_until: float | None, context: OperationContext
) -> list[str]:
    """Returns why a version must not be activated: its HCERTs must not outlive its certificate.

    ``sign_until`` plus the validity of an HCERT is at most notAfter, and ``at`` is not before
    notBefore.
    """
    terms = hcert_terms(version.key, context)
    if terms is None or terms.hcert is None:
        return []
    if version.certificate is None:
        return [f"{version.name} has no certificate, which HCERT needs"]
    certificate = x509.load_der_x509_certificate(version.certificate)
    ends = certificate.not_valid_after_utc.timestamp()
    problems = []
    if max(at, context.now) < certificate.not_valid_before_utc.timestamp():
        problems.append(f"{version.name}: its certificate is not valid yet at the activation")
    latest = ends - terms.hcert.validity
    if latest <= max(at, context.now):
        problems.append(
            f"{version.name}: its certificate ends too early, on {utc(ends)}: what the key signs is"
            f" valid for {duration(terms.hcert.validity)}, so the certificate must last longer than"
            f" until {utc(max(at, context.now) + terms.hcert.validity)}"
        )
    elif sign_until is None or sign_until > latest:
        problems.append(
            f"{version.name}: what it signs is valid for {duration(terms.hcert.validity)} and "
            f"must not outlive its certificate: sign_until is at most {utc(latest)}"
        )
    return problems


def _basis(details: ImportCertificate, context: OperationContext) -> dict[str, str]:
    """Returns the version as officers see it; others of its key do not matter."""
    version = context.version(details.version)
    return {version.name: context.basis(version.key)[version.name]}


def _certified(details: ImportCertificate, context: OperationContext) -> KeyVersion:
    version = context.version(details.version)
    pem = decoded(details.certificate).public_bytes(Encoding.PEM)
    return certified(version, pem, context.now, replaces=details.replace)


def _outlived_problems(
    version: KeyVersion, certificate: x509.Certificate, context: OperationContext
) -> list[str]:
    """Returns why a version that is active, or will be, must not get a certificate."""
    if version.state not in (KeyState.ACTIVE, KeyState.SUSPENDED) or version.activate_at is None:
        return []
    after = replace(version, certificate=certificate.public_bytes(Encoding.DER))
    return activation_problems(after, version.activate_at, version.sign_until, context)


def _state_problems(version: KeyVersion, context: OperationContext) -> list[str]:
    state = version.state_at(context.now)
    if state in (KeyState.PRE_ACTIVE, KeyState.ACTIVE, KeyState.SUSPENDED):
        return []
    return [f"{version.name} is {state}: it no longer needs a certificate"]
