import pytest

from signer.api.guard import principal_of
from signer.errors import CallError, Reason
from tests.unit.officers.people import certificate_of, pem

URI = "spiffe://signer.example/facility/01-001"
CERTIFICATE = certificate_of(URI)


def context(**changes: list[bytes] | None) -> dict[str, list[bytes]]:
    """What gRPC says of a good connection, with changes; None leaves a property out."""
    said: dict[str, list[bytes] | None] = {
        "ssl_tls_version": [b"TLSv1.3"],
        "peer_uri": [URI.encode()],
        "x509_common_name": [b"spiffe://signer.example/somebody-else"],
        "x509_subject_alternative_name": [URI.encode(), b"spiffe.example"],
        "x509_pem_cert": [pem(CERTIFICATE).encode()],
    }
    return {name: value for name, value in (said | changes).items() if value is not None}


def test_the_principal_is_the_one_uri() -> None:
    assert principal_of(context(), frozenset()) == URI
    assert principal_of(context(), frozenset({1, 2})) == URI


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
def test_anything_else_is_nobody(changes: dict[str, list[bytes] | None]) -> None:
    with pytest.raises(CallError) as caught:
        principal_of(context(**changes), frozenset())
    assert caught.value.reason is Reason.PEER_UNKNOWN


def test_a_serial_on_the_deny_list() -> None:
    with pytest.raises(CallError, match="deny list") as caught:
        principal_of(context(), frozenset({CERTIFICATE.serial_number}))
    assert caught.value.reason is Reason.PEER_UNKNOWN


def test_bytes_that_are_no_text_stay_a_stranger() -> None:
    found = principal_of(context(peer_uri=[URI.encode() + b"\xff"]), frozenset())
    assert found != URI
