"""Channels with mutual TLS, to one appliance or to several that share the calls."""

import ipaddress
import json
from os import PathLike
from pathlib import Path

import grpc

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
    cannot be read, ValueError for addresses of another form. Nothing is sent before the
    first call.
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
        root_certificates=Path(ca).read_bytes(),
        private_key=Path(key).read_bytes(),
        certificate_chain=Path(certificate).read_bytes(),
    )
    options: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    if shared:
        options.append(("grpc.service_config", SERVICE_CONFIG))
    if server_name is not None:
        options.append(("grpc.ssl_target_name_override", server_name))
    return target, credentials, options


def target_of(address: str) -> tuple[str, bool]:
    """Returns the address for gRPC, and whether several appliances share the calls.

    A single appliance is called even if it does not serve: its operator must reach it.
    """
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
