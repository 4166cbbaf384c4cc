"""Who a client's certificate says that it is, and what is nobody."""

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from signer.api.identity import identity_of, principal_of
from signer.errors import CallError, Reason
from tests.unit.officers.people import BEGINS, ENDS, certificate_of, key_of, pem

URI = "spiffe://signer.example/facility/01-001"
CERTIFICATE = certificate_of(URI)
PRINTED = hashes.SHA256()


def context(
    certificate: x509.Certificate = CERTIFICATE, **changes: list[bytes] | None
) -> dict[str, list[bytes]]:
    """What gRPC says of a connection, with changes; None leaves a property out."""
    uris = x509.UniformResourceIdentifier
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        # As gRPC reads them: C strings.
        read = [uri.partition("\0")[0].encode() for uri in names.get_values_for_type(uris)]
    except (x509.ExtensionNotFound, ValueError):
        read = [URI.encode()]
    said: dict[str, list[bytes] | None] = {
        "ssl_tls_version": [b"TLSv1.3"],
        "peer_uri": read,
        "x509_common_name": [b"spiffe://signer.example/somebody-else"],
        "x509_subject_alternative_name": [*read, b"spiffe.example"],
        "x509_pem_cert": [pem(certificate).encode()],
    }
    return {name: value for name, value in (said | changes).items() if value is not None}


def refused(said: dict[str, list[bytes]], denied: frozenset[int] = frozenset()) -> CallError:
    with pytest.raises(CallError) as caught:
        principal_of(said, denied)
    assert caught.value.reason is Reason.PEER_UNKNOWN
    return caught.value


def with_extensions(*extensions: x509.ExtensionType) -> x509.Certificate:
    """A certificate for URI with more extensions."""
    name, key = x509.Name.from_rfc4514_string("CN=client"), key_of(URI)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 0xAB, BEGINS, ENDS)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)])
    for extension in (names, *extensions):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


def usage(**allowed: bool) -> x509.KeyUsage:
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**(dict.fromkeys(names, False) | allowed))


def test_the_principal_is_the_one_uri() -> None:
    assert principal_of(context(), frozenset()) == URI
    assert principal_of(context(), frozenset({1, 2})) == URI
    leaf = x509.BasicConstraints(ca=False, path_length=None)
    usual = with_extensions(leaf, usage(digital_signature=True))
    assert principal_of(context(usual), frozenset()) == URI


@pytest.mark.parametrize(
    "changes",
    [
        {"ssl_tls_version": [b"TLSv1.2"]},
        {"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]},
        {"ssl_tls_version": []},
        {"ssl_tls_version": None},
        {"peer_uri": None},
        {"peer_uri": []},
        {"peer_uri": [URI.encode(), URI.encode()]},
        {"peer_uri": [URI.encode() + b"\xff"]},
        {"x509_pem_cert": None},
        {"x509_pem_cert": [b"nothing that is PEM"]},
        {"x509_pem_cert": [pem(CERTIFICATE).replace("MII", "AII").encode()]},
        {"x509_pem_cert": [pem(certificate_of("spiffe://signer.example/another")).encode()]},
    ],
    ids=" ".join,  # names alone: certificates differ in every process
)
def test_anything_else_is_nobody(changes: dict[str, list[bytes] | None]) -> None:
    refused(context(CERTIFICATE, **changes))


@pytest.mark.parametrize(
    "uri",
    [
        URI + "\0.attacker.example",
        "\0" + URI,
        URI + "\0",
        URI + "\n",
        URI + "\x1b[2J",
        URI + "/",
        URI + "//b",
        URI + "/../c",
        URI + "?query",
        URI.upper(),
        "https://signer.example/facility/01-001",
        "spiffe://signer.example",
        "spiffe:///facility",
        URI + "a" * 2048,
        "",
    ],
    ids=ascii,
)
def test_a_uri_of_another_form_is_nobody(uri: str) -> None:
    certificate = certificate_of(URI, uris=[uri])
    error = refused(context(certificate))
    # Neither to people nor to programs is it shown what somebody has put there.
    assert uri not in error.message or not uri
    assert error.metadata == {"certificate": identity_of(context(certificate)).name}
    assert certificate.fingerprint(PRINTED).hex() in error.message


@pytest.mark.parametrize("uris", [[], [URI, URI], [URI, "spiffe://signer.example/b"]], ids=len)
def test_exactly_one_uri_is_needed(uris: list[str]) -> None:
    error = refused(context(certificate_of(URI, uris=uris), peer_uri=[URI.encode()]))
    assert f"has {len(uris)} URIs" in error.message


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.BasicConstraints(ca=True, path_length=0),
        usage(digital_signature=True, key_cert_sign=True),
        usage(digital_signature=True, crl_sign=True),
    ],
    ids=repr,
)
def test_who_may_issue_certificates_is_no_client(extension: x509.ExtensionType) -> None:
    error = refused(context(with_extensions(extension)))
    assert "of an authority" in error.message
    assert error.metadata == {"principal": URI}


def test_a_part_that_cannot_be_read_is_nobody() -> None:
    oid = x509.ObjectIdentifier("2.5.29.19")  # basic constraints
    error = refused(context(with_extensions(x509.UnrecognizedExtension(oid, b"\xff"))))
    assert "cannot be read" in error.message
    assert error.metadata.keys() == {"certificate"}


def test_a_serial_on_the_deny_list() -> None:
    error = refused(context(), frozenset({CERTIFICATE.serial_number}))
    assert "deny list" in error.message
    assert error.metadata == {"principal": URI}


def test_a_certificate_without_a_principal_is_named_by_serial_and_hash() -> None:
    certificate = certificate_of(URI, uris=[])
    digest = certificate.fingerprint(PRINTED).hex()
    assert identity_of(context(certificate)).name == f"certificate b with SHA-256 {digest}"


def test_the_end_is_that_of_the_certificate() -> None:
    ends = datetime(2030, 1, 2, tzinfo=UTC)
    assert identity_of(context(certificate_of(URI, ends=ends))).end == ends.timestamp()


@given(uri=st.text(st.characters(max_codepoint=127), max_size=40).map("spiffe://a.b/c".__add__))
def test_what_is_a_principal_is_plain_and_whole(uri: str) -> None:
    said: Any = context(certificate_of(URI, uris=[uri]))
    try:
        found = principal_of(said, frozenset())
    except CallError:
        return
    assert found == uri
    assert re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+", uri)
