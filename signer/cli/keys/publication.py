"""Public material for verifiers: which versions it has, and its three forms. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from signer.errors import OperatorError

if TYPE_CHECKING:
    from signer.client import KeyVersion

_SIGNED = frozenset({"ACTIVE", "SUSPENDED", "DEACTIVATED"})
_RETIRED = frozenset({"DESTROY_SCHEDULED", "DESTROYED"})


def published(versions: Iterable[KeyVersion], *, announced: bool) -> list[KeyVersion]:
    """Returns the versions whose signatures verifiers shall accept.

    Those that sign or have signed: what they signed stays valid when they are suspended,
    deactivated or destroyed. Never those that were marked as compromised,
    whatever became of them since. With ``announced`` also
    those that are told when to sign, since verifiers must know a key before it signs.
    """
    return [
        each
        for each in versions
        if not each.compromised
        and (
            each.state in _SIGNED
            or (each.state in _RETIRED and each.activate_at is not None)
            or (announced and each.state == "PRE_ACTIVE" and each.activate_at is not None)
        )
    ]


def jwks(versions: Iterable[KeyVersion]) -> str:
    """Returns a JWK Set (RFC 7517); kid is the thumbprint of RFC 7638, as in JWS headers."""
    keys = [
        {**_jwk(each), "kid": each.jwk_thumbprint, "alg": each.algorithm, "use": "sig"}
        for each in versions
    ]
    return json.dumps({"keys": keys}, indent=2) + "\n"


def _jwk(version: KeyVersion) -> dict[str, str]:
    """Returns the members of a public key.

    Raises OperatorError where they do not give the thumbprint that the appliance names.
    """
    from signer.keys.certificates import jwk_members, jwk_thumbprint

    try:
        members = jwk_members(version.public_key)
    except TypeError:
        text = f"{version.name} has a key of a kind this program does not know"
        raise OperatorError(text) from None
    if jwk_thumbprint(version.public_key) != version.jwk_thumbprint:
        raise OperatorError(
            f"the thumbprint that the appliance names for {version.name} is not its public key's"
        )
    return members


def trust_list(versions: Iterable[KeyVersion]) -> str:
    """Returns the certificates as the EU gateway gives them to verifiers of health certificates.

    A JSON list, see eu-digital-green-certificates/dgc-gateway, trust list item. The country
    is that of the certificate's subject, empty where it names none.
    """
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    items = []
    for version in with_certificates(versions):
        der = version.certificate or b""
        subject = x509.load_der_x509_certificate(der).subject
        countries = subject.get_attributes_for_oid(NameOID.COUNTRY_NAME)
        digest = hashlib.sha256(der)
        made = version.created
        items.append(
            {
                "kid": base64.b64encode(digest.digest()[:8]).decode(),
                "timestamp": f"{made:%Y-%m-%dT%H:%M:%SZ}" if made is not None else None,
                "country": str(countries[0].value) if countries else "",
                "certificateType": "DSC",
                "thumbprint": digest.hexdigest(),
                "rawData": base64.b64encode(der).decode(),
            }
        )
    return json.dumps(items, indent=2) + "\n"


def certificates(versions: Iterable[KeyVersion]) -> str:
    """Returns the certificates as one PEM bundle, each after the name of its version."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    parts = []
    for version in with_certificates(versions):
        certificate = x509.load_der_x509_certificate(version.certificate or b"")
        parts.append(f"# {version.name}\n{certificate.public_bytes(Encoding.PEM).decode()}")
    return "".join(parts)


def with_certificates(versions: Iterable[KeyVersion]) -> list[KeyVersion]:
    return [each for each in versions if each.certificate is not None]


FORMS: Mapping[str, Callable[[Iterable[KeyVersion]], str]] = {
    "certificates": certificates,
    "jwks": jwks,
    "trust-list": trust_list,
}
"""What `--form` may say."""
