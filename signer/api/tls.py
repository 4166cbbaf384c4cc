"""The server's certificate, read again without a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signer.errors import ConfigError, Violation


class TlsFiles(Protocol):
    """Where certificate chain, key and the clients' CA lie, in PEM."""

    @property
    def certificate(self) -> Path: ...
    @property
    def key(self) -> Path: ...
    @property
    def client_ca(self) -> Path: ...


Content = tuple[bytes, bytes, bytes]
"""Certificate chain, key and clients' CA, checked."""


class Certificates:
    """What new connections are answered with; old ones keep what they began with."""

    def __init__(self, files: TlsFiles) -> None:
        """Reads the files; raises ConfigError."""
        self._files = files
        self._served = b""
        self._content = self.read()

    def read(self) -> Content:
        """Reads the files again, for ``use``; raises ConfigError."""
        return _read(self._files)

    def use(self, content: Content) -> bool:
        """Answers new connections with what ``read`` has read; returns whether it is new."""
        changed = content != self._content
        self._content = content
        return changed

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for mutual TLS that ask here at every handshake."""
        self._served = b"".join(self._content)
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._fetch,  # type: ignore[arg-type] # None is documented, not typed
            require_client_authentication=True,
        )

    def expiries(self) -> dict[str, float]:
        """Returns notAfter (seconds since the epoch) of the server's certificate and the CA."""
        chain, _, client_ca = self._content
        return {
            "server": _expiry(chain),
            "client_ca": _expiry(client_ca),
        }

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key, client_ca = self._content
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Answers gRPC before each handshake; None keeps what it has."""
        now = b"".join(self._content)
        if now == self._served:
            return None
        self._served = now
        return self._configuration()


def _read(files: TlsFiles) -> Content:
    named = {
        "tls.certificate": files.certificate,
        "tls.key": files.key,
        "tls.client_ca": files.client_ca,
    }
    problems, parts = [], []
    for field, path in named.items():
        try:
            parts.append(path.read_bytes())
        except OSError as error:
            problems.append(Violation(field, f"{path} cannot be read: {error.strerror}"))
    if not problems:
        problems = _problems(*parts)
    if problems:
        raise ConfigError("the server's TLS files", problems)
    chain, key, client_ca = parts
    return chain, key, client_ca


def _problems(chain: bytes, key: bytes, client_ca: bytes) -> list[Violation]:
    problems = []
    try:
        x509.load_pem_x509_certificates(client_ca)
    except ValueError:
        problems.append(Violation("tls.client_ca", "holds no certificate in PEM"))
    try:
        public = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError:
        return [*problems, Violation("tls.certificate", "holds no certificate in PEM")]
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError):
        return [*problems, Violation("tls.key", "holds no unencrypted private key in PEM")]
    if private.public_key() != public:
        problems.append(Violation("tls.key", "is not the key of the first certificate"))
    return problems


def _expiry(pem: bytes) -> float:
    certificates = x509.load_pem_x509_certificates(pem)
    return min(each.not_valid_after_utc.timestamp() for each in certificates)
