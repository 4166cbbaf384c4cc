"""Why an appliance cannot be reached: gRPC says it in words of its own, or not at all."""

import os
import socket
import ssl
from datetime import UTC, datetime

from cryptography import x509

from signer.config.client_file import ClientFile
from signer.text import utc

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
_PAST_PROXIES = ("no_grpc_proxy", "no_proxy")
"""Variables of the environment that gRPC reads, in this order; only in small letters."""
_SECONDS = 3.0
"""How long one look at the network may take: somebody waits for it after a failed call."""
_HOSTNAME_MISMATCH = 62  # X509_V_ERR_HOSTNAME_MISMATCH
_IP_MISMATCH = 64  # X509_V_ERR_IP_ADDRESS_MISMATCH
_HAS_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID


def hint(client: ClientFile) -> str:
    """Looks where the connection that a client file describes fails; "" if it does not.

    It looks at the files first, then connects, then makes a handshake, as the call did; where
    that went through a proxy, only its operator can say more.
    """
    address = str(client.address)
    host = client.address.host.strip("[]")
    if known := _ended(client) or _proxied(address, host):
        return known
    try:
        connection = socket.create_connection((host, client.address.port), _SECONDS)
    except ConnectionRefusedError:
        return f"nothing listens at {address}: is the daemon running, is `address` right?"
    except socket.gaierror:
        return f"the name {host} has no address: is `address` right, does DNS answer here?"
    except OSError as error:  # also of time
        why = error.strerror or "no answer"
        return f"{address} cannot be reached ({why}): a firewall, or another `address`?"
    with connection:
        try:
            return _handshake(client, connection, host)
        except OSError as error:
            return f"the connection to {address} was cut ({error.strerror or 'no answer'})"


def _proxied(address: str, host: str) -> str:
    """Says that the call went through a proxy; "" if the environment has none for this host."""
    listed = next((os.environ[name] for name in _PAST_PROXIES if os.environ.get(name)), "")
    if any(host.endswith(each.strip()) for each in listed.split(",") if each.strip()):
        return ""
    for name in _PROXIES:
        if os.environ.get(name):
            return (
                f"the call went to the proxy in `{name}`: does it let you reach {address}? To call"
                f" without it, add {host} to `no_proxy`"
            )
    return ""


def _ended(client: ClientFile) -> str:
    """Says that the client's certificate is not valid now; "" if it is, or cannot be read."""
    try:
        certificate = x509.load_pem_x509_certificate(client.certificate.read_bytes())
    except (OSError, ValueError):
        return ""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if end < datetime.now(UTC):
        return f"your certificate {client.certificate} ended on {utc(end.timestamp())}: renew it"
    if begin > datetime.now(UTC):
        return (
            f"your certificate {client.certificate} begins on {utc(begin.timestamp())}:"
            " is this machine's clock right?"
        )
    return ""


def _handshake(client: ClientFile, connection: socket.socket, host: str) -> str:
    context = ssl.create_default_context(cafile=client.ca)
    context.load_cert_chain(client.certificate, client.key)
    context.set_alpn_protocols(["h2"])
    name = client.server_name or host
    try:
        tls = context.wrap_socket(connection, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return _server_refused(client, name, error)
    except ssl.SSLError as error:
        return f"{client.address} does not speak TLS as an appliance does ({_reason(error)})"
    with tls:
        # In TLS 1.3 the server refuses a client after the client's own handshake; one that
        # accepts it begins to speak HTTP/2.
        why = "it closes the connection"
        try:
            tls.settimeout(_SECONDS)
            if tls.recv(1):
                return ""
        except TimeoutError:
            return ""
        except (ssl.SSLError, ConnectionError) as error:
            why = _reason(error)
        return (
            f"the appliance refuses the certificate {client.certificate} ({why}): is its authority"
            " in `client_ca` there?"
        )


def _reason(error: OSError) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "no answer"
    return str(reason).replace("_", " ").lower()


def _server_refused(client: ClientFile, name: str, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in {_HOSTNAME_MISMATCH, _IP_MISMATCH}:
        return (
            f"the server's certificate does not name {name}: set `server_name` to the name that"
            " it has"
        )
    if error.verify_code in {_HAS_EXPIRED, _NOT_YET_VALID}:
        return (
            "the server's certificate is not valid now: renew it there, then reload by SIGHUP; or"
            " this machine's clock is wrong"
        )
    return f"the server's certificate is not from an authority in {client.ca}: is `ca` right?"
