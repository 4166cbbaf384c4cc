"""``signer keys export``: public material for verifiers, in three forms."""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import click
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from signer.cli.connection import client_options
from signer.cli.keys.showing import facility_option, listed
from signer.cli.options import NEW_FILE
from signer.cli.output import say, write_file
from signer.client import KeyVersion, SignerClient
from signer.errors import OperatorError
from signer.text import count
from signer.x509 import jwk_members, jwk_thumbprint

_SIGNED = frozenset({"ACTIVE", "SUSPENDED", "DEACTIVATED"})
_RETIRED = frozenset({"DESTROY_SCHEDULED", "DESTROYED"})


def published(versions: Iterable[KeyVersion], *, announced: bool) -> list[KeyVersion]:
    """Returns the versions whose signatures verifiers should accept.

    Those that sign or have signed: their signatures stay valid when they are suspended,
    deactivated or destroyed. Never those that were marked as compromised, in whatever
    state they are now. With ``announced`` also those with a planned activation, since
    verifiers must know a key before it signs.
    """
    return [
        version
        for version in versions
        if not version.compromised
        and (
            version.state in _SIGNED
            or (version.state in _RETIRED and version.activate_at is not None)
            or (announced and version.state == "PRE_ACTIVE" and version.activate_at is not None)
        )
    ]


def jwks(versions: Iterable[KeyVersion]) -> str:
    """Returns a JWK Set (RFC 7517); kid is the thumbprint of RFC 7638, as in JWS headers."""
    keys = [
        {**_jwk(version), "kid": version.jwk_thumbprint, "alg": version.algorithm, "use": "sig"}
        for version in versions
    ]
    return json.dumps({"keys": keys}, indent=2) + "\n"


def _jwk(version: KeyVersion) -> dict[str, str]:
    """Returns the members of a public key; raises OperatorError if its thumbprint is another."""
    try:
        members = jwk_members(version.public_key)
    except TypeError:
        text = f"{version.name} has a kind of key that this program does not support"
        raise OperatorError(text) from None
    if jwk_thumbprint(version.public_key) != version.jwk_thumbprint:
        raise OperatorError(
            f"{version.name}: the thumbprint from the appliance is not that of its public key"
        )
    return members


def trust_list(versions: Iterable[KeyVersion]) -> str:
    """Returns the certificates in the form that the EU gateway gives to verifiers.

    A JSON list, see eu-digital-green-certificates/dgc-gateway, trust list item. The country
    is that of the certificate's subject, "" if it has none.
    """
    items = []
    for version in _with_certificates(versions):
        der = version.certificate or b""
        subject = x509.load_der_x509_certificate(der).subject
        countries = subject.get_attributes_for_oid(NameOID.COUNTRY_NAME)
        digest = hashlib.sha256(der)
        created = version.created
        items.append(
            {
                "kid": base64.b64encode(digest.digest()[:8]).decode(),
                "timestamp": f"{created:%Y-%m-%dT%H:%M:%SZ}" if created else None,
                "country": str(countries[0].value) if countries else "",
                "certificateType": "DSC",
                "thumbprint": digest.hexdigest(),
                "rawData": base64.b64encode(der).decode(),
            }
        )
    return json.dumps(items, indent=2) + "\n"


def certificates(versions: Iterable[KeyVersion]) -> str:
    """Returns the certificates as one PEM bundle, each after the name of its version."""
    parts = []
    for version in _with_certificates(versions):
        certificate = x509.load_der_x509_certificate(version.certificate or b"")
        parts.append(f"# {version.name}\n{certificate.public_bytes(Encoding.PEM).decode()}")
    return "".join(parts)


def _with_certificates(versions: Iterable[KeyVersion]) -> list[KeyVersion]:
    return [version for version in versions if version.certificate is not None]


_FORMS: Mapping[str, Callable[[Iterable[KeyVersion]], str]] = {
    "certificates": certificates,
    "jwks": jwks,
    "trust-list": trust_list,
}
"""The values of `--form`."""


@click.command(short_help="Writes public keys or certificates for verifiers.")
@click.option(
    "--form",
    type=click.Choice(sorted(_FORMS), case_sensitive=False),
    required=True,
    help="What to write.",
)
@facility_option
@click.option(
    "--announced/--no-announced",
    default=True,
    show_default=True,
    help="With versions that have a planned activation, but do not sign yet.",
)
@click.option("--out", type=NEW_FILE, help="Without it the text is printed.")
@client_options
def export(
    *, client: SignerClient, form: str, facility: str | None, announced: bool, out: Path | None
) -> None:
    """Writes the public keys or certificates of all versions that sign or have signed.

    Signatures of suspended, deactivated and destroyed versions stay valid, so these are
    included; versions that were marked as compromised are not.

    \b
    certificates  one PEM bundle
    jwks          a JWK Set (RFC 7517) for verifiers of JWS
    trust-list    kid and certificate, for verifiers of health certificates

    \b
      signer keys export --form trust-list --facility moh --out trust.json \\
        --client auditor.yaml
      signer keys export --form jwks --client auditor.yaml > jwks.json
    """
    versions = published(listed(client, facility), announced=announced)
    included = versions if form == "jwks" else _with_certificates(versions)
    if not included:
        raise OperatorError("no key version is to be published in this form: nothing was written")
    text: str = _FORMS[form](versions)
    if out is None:
        say(text, newline=False)
    else:
        write_file(out, text.encode())
    without = len(versions) - len(included)
    more = f"; {count(without, 'more has', 'more have')} no certificate" if without else ""
    say(f"{count(len(included), 'key version')}{more}", err=True)
