r"""Who calls: what the certificate of a client says, read from the certificate itself.

gRPC also gives texts that it has read from the certificate. They are C strings, which end at the
first NUL: the URI ``spiffe://a/issuer\0.b`` would be ``spiffe://a/issuer``. So nothing is decided
with them. The rules for the certificate are those of X509-SVID (sections 4 and 5.2).
"""

import functools
import hashlib
import ssl
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cryptography import x509

from signer.errors import CallError, Reason
from signer.model import is_principal
from signer.x509 import certifies, uris_of

AuthContext = Mapping[str, Iterable[bytes]]
"""What gRPC says of a connection."""
_TLS_VERSION = "TLSv1.3"
_ASK = "ask your security officer for a certificate"
_CACHED = 4096  # certificates; a kept one takes about 3 KB


class Identity(NamedTuple):
    """The client's certificate: ``principal`` if it names one, else the ``problem``.

    ``name`` is for logs and limits: the principal, or serial number and SHA-256 of the
    certificate. ``end`` is notAfter, in seconds since the epoch.
    """

    principal: str
    problem: str
    name: str
    serial: int
    end: float


def identity_of(context: AuthContext) -> Identity:
    """Returns what the certificate of a connection says, from gRPC's auth context."""
    return _identity(b"".join(context.get("x509_pem_cert", ())))


def principal_of(context: AuthContext, denied_serials: frozenset[int]) -> str:
    """Returns the caller's principal from gRPC's auth context.

    Raises CallError PEER_UNKNOWN if the certificate is not one of a principal or is on the deny
    list, or if the connection is not known to use TLS 1.3 (grpcio reports the version from 1.85
    on).
    """
    identity = identity_of(context)
    problem = identity.problem
    if list(context.get("ssl_tls_version", ())) != [_TLS_VERSION.encode()]:
        problem = f"{_TLS_VERSION} is required: update the client"
    elif not problem and list(context.get("peer_uri", ())) != [identity.principal.encode()]:
        problem = f"gRPC reads another URI in the client certificate: {_ASK}"
    elif not problem and identity.serial in denied_serials:
        problem = (
            "the client certificate is on the deny list: ask your security officer for another"
        )
    if problem:
        raise CallError(Reason.PEER_UNKNOWN, f"{problem} ({identity.name})", said(identity))
    return identity.principal


def said(identity: Identity) -> Mapping[str, str]:
    """Returns the caller's name as metadata of an error: its principal or its certificate."""
    return {"principal" if identity.principal else "certificate": identity.name}


@functools.lru_cache(maxsize=_CACHED)
def _identity(pem: bytes) -> Identity:
    try:
        der = ssl.PEM_cert_to_DER_cert(pem.decode())
        name = f"certificate with SHA-256 {hashlib.sha256(der).hexdigest()}"
    except ValueError:
        return Identity("", f"the connection has no client certificate: {_ASK}", "nobody", 0, 0.0)
    try:
        certificate = x509.load_der_x509_certificate(der)
        serial, end = certificate.serial_number, certificate.not_valid_after_utc.timestamp()
    except ValueError:
        return Identity("", f"the client certificate cannot be read: {_ASK}", name, 0, 0.0)
    principal, problem = _principal(certificate)
    name = principal or f"certificate {serial:x} with {name.removeprefix('certificate with ')}"
    return Identity(principal, problem, name, serial, end)


def _principal(certificate: x509.Certificate) -> tuple[str, str]:
    """Returns the principal that a certificate names, or why it names none."""
    try:
        certificate.extensions  # noqa: B018 - reads them all, and keeps them
    except (x509.DuplicateExtension, ValueError):
        return "", f"the client certificate has an extension that cannot be read: {_ASK}"
    uris = uris_of(certificate)
    if len(uris) != 1:
        return "", f"the client certificate has {len(uris)} URIs, exactly one is needed: {_ASK}"
    if not is_principal(uris[0]):
        return "", (
            "the URI of the client certificate is not spiffe://domain/path in plain characters: "
            f"{_ASK}"
        )
    if certifies(certificate):
        return uris[0], (
            "the client certificate is that of an authority, which may issue certificates: "
            f"{_ASK} that may not"
        )
    return uris[0], ""
