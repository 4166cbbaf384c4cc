"""The server's certificate, read again without a restart; and whether gRPC can use it.

gRPC accepts files of which no handshake succeeds, and says so nowhere. So they are checked here,
by the same function for a start, a reload, ``signer check`` and ``signer doctor``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signer.config.models import TlsConfig
from signer.errors import ConfigError, Violation
from signer.files import is_private, private_mode
from signer.text import utc

_SOURCE = "the TLS configuration of the server"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CURVES, _RSA_BITS = frozenset({"secp256r1", "secp384r1"}), 2048

ServerKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Content = tuple[bytes, bytes, bytes]
"""Certificate chain, key and the clients' CA, in PEM and checked."""


class Certificates:
    """The certificate for new connections; existing connections keep theirs."""

    def __init__(self, files: TlsConfig, now: Callable[[], float]) -> None:
        """Reads the files; raises ConfigError. ``now``: seconds since the epoch."""
        self._files, self._now = files, now
        self._served = b""
        self._content = self.read()

    def read(self) -> Content:
        """Returns the content of the files, for ``use``; raises ConfigError."""
        content = read_content(self._files, self._now())
        key = self._files.key
        if not is_private(found := key.stat(), os.geteuid()):
            mode = private_mode(found.st_uid, os.geteuid())
            text = f"{key} is accessible to other users: chmod {mode:o} {key}"
            raise ConfigError(_SOURCE, [Violation("tls.key", text)])
        return content

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


def read_content(files: TlsConfig, now: float) -> Content:
    """Reads and checks the three files; raises ConfigError with all that is wrong with them.

    The mode of the key's file is not looked at: that depends on who reads it.
    """
    problems, parts = [], []
    for name in ("certificate", "key", "client_ca"):
        path: Path = getattr(files, name)
        try:
            parts.append(path.read_bytes())
        except OSError as error:
            text = f"{path} cannot be read: {error.strerror}"
            problems.append(Violation(f"tls.{name}", text))
    if not problems:
        problems = list(_problems(parts, now))
    if problems:
        raise ConfigError(_SOURCE, problems)
    chain, key, client_ca = parts
    return chain, key, client_ca


def _problems(parts: Sequence[bytes], now: float) -> Iterator[Violation]:
    chain, key, client_ca = parts
    authorities, unread = _certificates(client_ca)
    if unread:
        yield Violation("tls.client_ca", unread)
    elif (ended := max(map(_end, authorities))) <= now:
        yield Violation("tls.client_ca", f"ended on {utc(ended)}: no client could connect")
    certificates, unread = _certificates(chain)
    if unread:
        yield Violation("tls.certificate", unread)
    elif (ended := min(map(_end, certificates))) <= now:
        yield Violation("tls.certificate", f"ended on {utc(ended)}: no client could connect")
    private, unread = _private_key(key)
    if unread:
        yield Violation("tls.key", unread)
    elif private and certificates and private.public_key() != certificates[0].public_key():
        yield Violation("tls.key", "is not the key of the first certificate")


def _certificates(content: bytes) -> tuple[list[x509.Certificate], str]:
    """Reads certificates; returns why they cannot be used, "" if they can."""
    if odd := _not_pem(content, "openssl x509 -inform DER"):
        return [], odd
    try:
        return x509.load_pem_x509_certificates(content), ""
    except ValueError:
        return [], "contains no PEM certificate"


def _private_key(content: bytes) -> tuple[ServerKey | None, str]:
    """Reads the server's key; returns why it cannot be used, "" if it can."""
    if odd := _not_pem(content, "openssl pkey -inform DER"):
        return None, odd
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        return None, "is encrypted: write it without a password (openssl pkey), mode 0600"
    except (ValueError, UnsupportedAlgorithm):
        return None, "contains no unencrypted PEM private key"
    match key:
        case rsa.RSAPrivateKey() if key.key_size >= _RSA_BITS:
            return key, ""
        case ec.EllipticCurvePrivateKey() if key.curve.name in _CURVES:
            return key, ""
    return (
        None,
        f"is a key that TLS cannot use here: take RSA from {_RSA_BITS} bits, P-256 or P-384",
    )


def _not_pem(content: bytes, converter: str) -> str:
    """Returns what gRPC does not read although other programs do: DER, a byte order mark."""
    if content.startswith(_BYTE_ORDER_MARK):
        return "begins with a byte order mark: save it without one"
    if content.startswith(b"\x30"):
        return f"is DER, expected PEM: convert it with {converter}"
    return ""


def _end(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _expiry(pem: bytes) -> float:
    return min(map(_end, x509.load_pem_x509_certificates(pem)))
