"""Channels with mutual TLS, to one appliance or to several that share the calls."""

import ipaddress
import json
from os import PathLike
from pathlib import Path

import grpc
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from signer.model import MESSAGE_BYTES
from signer.v1 import signing_pb2

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    # A long call notices a dead connection; the server would treat pings without a
    # call as abuse.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.enable_retries", 0),  # gRPC's own retries ignore the appliance's hints
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {
            "serviceName": signing_pb2.DESCRIPTOR.services_by_name["SigningService"].full_name
        },
    }
)
"""Calls go in turn to the appliances whose health is SERVING, and is watched."""

_CERTIFICATE, _KEY = b"-----BEGIN CERTIFICATE-----", b"PRIVATE KEY-----"

FilePath = str | PathLike[str]


def secure_channel(
    address: str,
    *,
    ca: FilePath,
    certificate: FilePath,
    key: FilePath,
    server_name: str | None = None,
) -> grpc.Channel:
    """Opens a channel with mutual TLS.

    ``address`` is ``host:port``; or several appliances, which take calls in turn while they
    serve: ``10.0.0.1:7443,10.0.0.2:7443`` (addresses of one family, with a
    ``server_name``), or ``dns:///signer.example:7443`` for all addresses of one name.
    ``ca``, ``certificate`` and ``key`` are PEM files; ``server_name`` is the name in the
    server's certificate where it is not the host of ``address``. Raises OSError if a file
    cannot be read, ValueError for addresses of another form, and for a certificate and a key
    that are swapped, absent or do not belong together. Nothing is sent before the first call.
    """
    files = _read(address, server_name, ca, certificate, key)
    return grpc.secure_channel(*files)


def secure_channel_awaited(
    address: str,
    *,
    ca: FilePath,
    certificate: FilePath,
    key: FilePath,
    server_name: str | None = None,
) -> grpc.aio.Channel:
    """As ``secure_channel``, for asyncio; to be called on the loop that is to use it."""
    files = _read(address, server_name, ca, certificate, key)
    return grpc.aio.secure_channel(*files)


def _read(
    address: str, server_name: str | None, ca: FilePath, certificate: FilePath, key: FilePath
) -> tuple[str, grpc.ChannelCredentials, list[tuple[str, int | str]]]:
    """Returns gRPC's target, credentials and options."""
    target, shared = target_of(address)
    if shared and target.startswith("ip") and server_name is None:
        raise ValueError("several addresses need the name in their certificate: server_name")
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(ca, _CERTIFICATE),
        private_key=_pem(key, _KEY),
        certificate_chain=_pem(certificate, _CERTIFICATE),
    )
    _check_pair(certificate, key)
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if shared:
        options.append(("grpc.service_config", SERVICE_CONFIG))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return target, credentials, options


def _pem(path: FilePath, wanted: bytes) -> bytes:
    """Returns the content of a PEM file; raises ValueError if it does not have what is wanted."""
    content = Path(path).read_bytes()
    if wanted in content:
        return content
    what, other = ("certificate", _KEY) if wanted == _CERTIFICATE else ("private key", _CERTIFICATE)
    text = f"{path} has no {what} in PEM"
    if other in content:
        text += f", but a {'private key' if other == _KEY else 'certificate'}: are they swapped?"
    raise ValueError(text)


def _check_pair(certificate: FilePath, key: FilePath) -> None:
    """Raises ValueError if a private key is not that of the certificate.

    gRPC finds it only in the first handshake, and does not say it.
    """
    try:
        own = load_pem_x509_certificate(Path(certificate).read_bytes()).public_key()
        theirs = load_pem_private_key(Path(key).read_bytes(), None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return  # of a form that only gRPC knows
    if own != theirs:
        raise ValueError(f"{key} is not the private key of the certificate {certificate}")


def target_of(address: str) -> tuple[str, bool]:
    """Returns the address for gRPC, and whether several appliances share the calls.

    A single appliance is called even if it does not serve: its operator must reach it.
    Raises ValueError for addresses of another form.
    """
    if address.startswith(("http://", "https://")):
        raise ValueError(f'"{address}" is a URL: write host:port, as in signer.example:7443')
    alone = "," not in address and not address.startswith("unix")
    if alone and not address.rpartition(":")[2].strip("/").isdigit():
        raise ValueError(f'"{address}" has no port: write host:port, as in signer.example:7443')
    if address.startswith("dns:"):
        return address, True
    if "," not in address:
        return address, False
    addresses = [part.strip() for part in address.split(",")]
    versions = {_version(part) for part in addresses}
    if versions not in ({4}, {6}):
        raise ValueError(
            "several addresses must be all IPv4 or all IPv6, as in 10.0.0.1:7443,10.0.0.2:7443 or"
            " [fd00::1]:7443,[fd00::2]:7443; for one name of several: dns:///signer.example:7443"
        )
    return f"ipv{versions.pop()}:{','.join(addresses)}", True


def _version(address: str) -> int:
    """Returns the IP version of an address with its port; 0 if it is not an IP address."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        version = ipaddress.ip_address(host.strip("[]")).version
    except ValueError:
        return 0
    return version if port.isdigit() and bracketed == (version == 6) else 0
