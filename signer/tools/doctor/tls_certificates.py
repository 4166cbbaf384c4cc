"""The certificates of the gRPC port: they match, fit their use, and are valid."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from signer.api.tls import read_content
from signer.config.client_file import load_client
from signer.config.models import TlsConfig
from signer.errors import ConfigError, Violation
from signer.text import count
from signer.tools.doctor.finding import Finding, ok, refused, warning, wrong
from signer.x509 import is_authority

SOON = timedelta(days=30)


def examine_tls(tls: TlsConfig, now: float) -> Iterator[Finding]:
    """Judges certificate, key and client CA together; the files are readable."""
    try:
        read_content(tls, now)
    except ConfigError as error:
        yield refused("tls", error)
        return
    chain = x509.load_pem_x509_certificates(tls.certificate.read_bytes())
    yield judge_chain("tls.certificate", chain, now)
    authorities = x509.load_pem_x509_certificates(tls.client_ca.read_bytes())
    yield judge_authorities("tls.client_ca", authorities, now)


def tls_problems(tls: TlsConfig, now: float) -> list[Violation]:
    """Returns why a start or a reload would refuse the TLS files, which are readable."""
    try:
        read_content(tls, now)
    except ConfigError as error:
        return list(error.problems)
    return []


def examine_client(path: Path | None, now: float) -> Iterator[Finding]:
    """Judges the client file of commands on this machine, if there is one."""
    if path is None:
        return
    try:
        client = load_client(path)
        content = client.certificate.read_bytes()
        yield judge_chain("client", x509.load_pem_x509_certificates(content)[:1], now)
    except ConfigError as error:
        yield refused("client", error)
    except (OSError, ValueError) as error:
        yield wrong("client", str(error), f"correct {path}, or the files that it names")


def judge_chain(check: str, chain: Sequence[x509.Certificate], now: float) -> Finding:
    """Judges a chain, leaf first: each certificate is issued by the next one, all are valid."""
    for position, (below, above) in enumerate(pairwise(chain), 1):
        try:
            below.verify_directly_issued_by(above)
        except (InvalidSignature, ValueError, TypeError):
            return wrong(
                check,
                f"certificate {position} of the chain was not issued by the next one",
                "order the chain: the server certificate first, each followed by its issuer",
            )
    return judge_dates(check, chain, now)


def judge_authorities(check: str, authorities: Sequence[x509.Certificate], now: float) -> Finding:
    """Judges the CA certificates that issue client certificates."""
    for each in authorities:
        if not is_authority(each):
            return wrong(
                check,
                f"{each.subject.rfc4514_string()} is not a CA certificate (basicConstraints)",
                "put the CA certificate that issues client certificates into the file",
            )
    return judge_dates(check, authorities, now)


def judge_dates(check: str, certificates: Sequence[x509.Certificate], now: float) -> Finding:
    """Judges whether all certificates are valid now and in 30 days."""
    at = datetime.fromtimestamp(now, UTC)
    begins = max(each.not_valid_before_utc for each in certificates)
    ends = min(each.not_valid_after_utc for each in certificates)
    until, remedy = f"{ends:%Y-%m-%d %H:%M} UTC", "install a new one, then run `signer reload`"
    if begins > at:
        return wrong(
            check, f"not valid before {begins:%Y-%m-%d %H:%M} UTC", "correct the clock, or wait"
        )
    if ends <= at:
        return wrong(check, f"ended on {until}", remedy)
    left = count((ends - at).days, "day")
    if ends - at < SOON:
        return warning(check, f"ends on {until}, in {left}", remedy)
    return ok(check, f"valid until {until}, {left}")
