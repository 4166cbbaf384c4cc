"""The caller's principal: the one URI of the client's certificate, compared whole.

Not the common name, and not gRPC's property of all alternative names: it contains DNS
names as well.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from cryptography import x509

from signer.errors import CallError, Reason

_TLS_VERSION = "TLSv1.3"
AuthContext = Mapping[str, Iterable[bytes]]


def principal_of(context: AuthContext, denied_serials: frozenset[int]) -> str:
    """Returns the caller's principal from gRPC's auth context.

    Raises CallError PEER_UNKNOWN if the certificate does not have exactly one URI or is on
    the deny list, or if the connection is not known to use TLS 1.3 (grpcio reports the
    version from 1.85 on).
    """
    if list(context.get("ssl_tls_version", ())) != [_TLS_VERSION.encode()]:
        raise CallError(Reason.PEER_UNKNOWN, f"{_TLS_VERSION} is required: update the client")
    uris = list(context.get("peer_uri", ()))
    if len(uris) != 1:
        raise CallError(
            Reason.PEER_UNKNOWN,
            f"the client certificate has {len(uris)} URIs, exactly one is needed: "
            "ask your security officer for a certificate",
        )
    if denied_serials and _serial(b"".join(context.get("x509_pem_cert", ()))) in denied_serials:
        raise CallError(
            Reason.PEER_UNKNOWN,
            "the client certificate is on the deny list: ask your security officer for another",
        )
    return uris[0].decode(errors="replace")


@functools.lru_cache(maxsize=1024)
def _serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number
