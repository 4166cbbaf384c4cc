"""The server's certificate, read again without a restart."""

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signer.config.models import TlsConfig
from signer.errors import ConfigError, Violation

Content = tuple[bytes, bytes, bytes]
"""Certificate chain, key and the clients' CA, in PEM and checked."""


class Certificates:
    """The certificate for new connections; existing connections keep theirs."""

    def __init__(self, files: TlsConfig) -> None:
        """Reads the files; raises ConfigError."""
        self._files = files
        self._served = b""
        self._content = self.read()

    def read(self) -> Content:
        """Returns the content of the files, for ``use``; raises ConfigError."""
        problems, parts = [], []
        for name in ("certificate", "key", "client_ca"):
            path = getattr(self._files, name)
            try:
                parts.append(path.read_bytes())
            except OSError as error:
                text = f"{path} cannot be read: {error.strerror}"
                problems.append(Violation(f"tls.{name}", text))
        if not problems:
            problems = _problems(*parts)
        if problems:
            raise ConfigError("the server's TLS files", problems)
        chain, key, client_ca = parts
        return chain, key, client_ca

    def use(self, content: Content) -> bool:
        """Uses a content for new connections; returns whether it has changed."""
        changed = content != self._content
        self._content = content
        return changed

    def credentials(self) -> grpc.ServerCredentials:
        """Returns credentials for mutual TLS that call ``_fetch`` before every handshake."""
        self._served = b"".join(self._content)
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(),
            self._fetch,  # type: ignore[arg-type] # None is documented, not typed
            require_client_authentication=True,
        )

    def expiries(self) -> dict[str, float]:
        """Returns notAfter (seconds since the epoch) of the server's certificate and the CA."""
        chain, _, client_ca = self._content
        return {"server": _expiry(chain), "client_ca": _expiry(client_ca)}

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        chain, key, client_ca = self._content
        return grpc.ssl_server_certificate_configuration([(key, chain)], client_ca)

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Returns the configuration for a handshake; None for the same as before."""
        now = b"".join(self._content)
        if now == self._served:
            return None
        self._served = now
        return self._configuration()


def _problems(chain: bytes, key: bytes, client_ca: bytes) -> list[Violation]:
    problems = []
    try:
        x509.load_pem_x509_certificates(client_ca)
    except ValueError:
        problems.append(Violation("tls.client_ca", "contains no PEM certificate"))
    try:
        public = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError:
        return [*problems, Violation("tls.certificate", "contains no PEM certificate")]
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError):
        return [*problems, Violation("tls.key", "contains no unencrypted PEM private key")]
    if private.public_key() != public:
        problems.append(Violation("tls.key", "is not the key of the first certificate"))
    return problems


def _expiry(pem: bytes) -> float:
    certificates = x509.load_pem_x509_certificates(pem)
    return min(c.not_valid_after_utc.timestamp() for c in certificates)
