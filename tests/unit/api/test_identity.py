from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from signer.api.guard import principal_of
from signer.errors import CallError, Reason

URI = "spiffe://signer.example/facility/01-001"


@pytest.fixture(scope="module")
def certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=spiffe://signer.example/somebody-else")
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(0xA0B1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def context(certificate: x509.Certificate, **changes: list[bytes] | None) -> dict[str, list[bytes]]:
    """What gRPC says of a good connection, with changes; None leaves a property out."""
    said: dict[str, list[bytes] | None] = {
        "ssl_tls_version": [b"TLSv1.3"],
        "peer_uri": [URI.encode()],
        "x509_common_name": [b"spiffe://signer.example/somebody-else"],
        "x509_subject_alternative_name": [URI.encode(), b"spiffe.example"],
        "x509_pem_cert": [certificate.public_bytes(Encoding.PEM)],
    }
    return {name: value for name, value in (said | changes).items() if value is not None}


def test_the_principal_is_the_one_uri(certificate: x509.Certificate) -> None:
    assert principal_of(context(certificate), frozenset()) == URI
    assert principal_of(context(certificate), frozenset({1, 2})) == URI


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
    ],
    ids=str,
)
def test_anything_else_is_nobody(
    certificate: x509.Certificate, changes: dict[str, list[bytes] | None]
) -> None:
    with pytest.raises(CallError) as caught:
        principal_of(context(certificate, **changes), frozenset())
    assert caught.value.reason is Reason.PEER_UNKNOWN


def test_a_serial_on_the_deny_list(certificate: x509.Certificate) -> None:
    with pytest.raises(CallError, match="deny list") as caught:
        principal_of(context(certificate), frozenset({0xA0B1}))
    assert caught.value.reason is Reason.PEER_UNKNOWN


def test_bytes_that_are_no_text_stay_a_stranger(certificate: x509.Certificate) -> None:
    found = principal_of(context(certificate, peer_uri=[URI.encode() + b"\xff"]), frozenset())
    assert found != URI
