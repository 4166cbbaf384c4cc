"""``signer verify``: verifies what an appliance signed, with public keys that the user trusts."""

import base64
import binascii
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from signer.algorithms import Algorithm
from signer.cli.connection import connect, optional_daemon_options
from signer.cli.operations.arguments import TIME
from signer.cli.options import FILE, PATHS, inputs_argument, json_flag
from signer.cli.output import explained, print_json, say
from signer.cli.revoked import RevocationLists
from signer.client.key_files import KeysError, TrustedKey
from signer.client.verification import TrustedKeys, VerificationError, Verified
from signer.errors import OperatorError
from signer.format_terms import HcertClaim
from signer.formats.hcert_claims import host_of
from signer.formats.timestamp_reading import detached_format
from signer.model import MESSAGE_BYTES, Format
from signer.text import count, plain, utc

_RAW = frozenset({Format.DIGEST, Format.MESSAGE})
_CMS = frozenset({Format.CMS, Format.CMS_DIGEST, Format.TIMESTAMP})
_DIGESTS = frozenset({Format.DIGEST, Format.CMS_DIGEST})
_MOST_OF_TEXT = 2 * MESSAGE_BYTES
"""Bytes of a finished message at most: text is longer than what it holds."""


class _Judged(NamedTuple):
    """One message: where it is from, and what it is, or why it is not valid."""

    source: str
    line: int | None
    said: Verified | str


@click.command()
@click.option(
    "--keys",
    "keys_files",
    metavar="FILE",
    type=FILE,
    multiple=True,
    help="Public keys to trust: what `signer keys export` writes, or PEM. Repeatable.",
)
@optional_daemon_options
@click.option(
    "--signature",
    "signature_file",
    metavar="FILE",
    type=FILE,
    help="A raw or CMS signature or a time-stamp, also in Base64; INPUT is then what it signs.",
)
@click.option(
    "--format",
    "format_name",
    type=click.Choice([each.value for each in Format], case_sensitive=False),
    help="Accept only this format; with --signature the default is what the file is: MESSAGE,"
    " CMS or TIMESTAMP. DIGEST and CMS_DIGEST: INPUT is a digest.",
)
@click.option("--lines", is_flag=True, help="Each line is a message, as `signer sign` prints them.")
@click.option(
    "--at",
    metavar="TIME",
    type=TIME,
    help="Compare times with this one instead of the current time, as in"
    " 2022-01-31T00:00:00Z, or +7d from now.",
)
@click.option(
    "--revocations",
    "list_paths",
    metavar="PATH",
    type=PATHS,
    multiple=True,
    help="A signed list of revoked certificates, or a folder of them (*.p7m). Repeatable.",
)
@json_flag("Print one JSON object a message.")
@inputs_argument
def verify(
    *,
    keys_files: tuple[Path, ...],
    client_file: Path | None,
    signature_file: Path | None,
    format_name: str | None,
    lines: bool,
    at: float | None,
    list_paths: tuple[Path, ...],
    as_json: bool,
    inputs: tuple[str, ...],
) -> None:
    """Verifies signed messages and raw signatures; `-` is standard input.

    A JWS, a SMART Health Card, a COSE_Sign1 and the text of an HCERT contain what they
    sign; for a raw or CMS signature, INPUT is the message or its digest (raw or in hex).
    Also checked are the times of a card, the times and the type of an HCERT, and for a
    CMS signature or a time-stamp whether its certificate was valid at its time. Times
    are compared with the current time; --at is for messages that have expired since.

    An HCERT in a list of --revocations is not valid. `signer revocations build` makes
    these lists. A list must be signed by a trusted key and must not have ended; otherwise
    nothing is verified.

    The trusted keys come from --keys, and then no appliance is called; without --keys
    they come from the appliance. An old list of keys does not show keys that were
    compromised since: export it again from time to time.

    Exit codes: 0 all are valid, 1 at least one is not, 2 wrong usage.

    \b
      signer keys export --form jwks --client auditor.yaml > keys.json
      signer verify --keys keys.json record.json.jws
      signer verify --keys keys.json --signature record.sig record.json
      signer verify --keys certificates.pem --signature report.pdf.p7s report.pdf
      signer verify --keys certificates.pem --signature report.pdf.tsr report.pdf
      signer verify --keys trust-list.json --lines --json certificates.txt
      signer verify --keys key.pem --format DIGEST --signature a.sig a.sha256
      signer verify --keys certificates.pem --revocations lists certificate.hc1
    """
    wanted = None if format_name is None else Format(format_name)
    detached = _RAW | _CMS
    if signature_file is None and wanted in detached:
        raise click.UsageError(f"{wanted} needs --signature FILE: it does not hold what it signs")
    if signature_file is not None and (lines or len(inputs) > 1 or wanted not in {None, *detached}):
        raise click.UsageError("--signature goes with one INPUT: a message, or a digest")
    if signature_file is not None and list_paths:
        raise click.UsageError("--revocations is for HCERT: omit --signature")
    keys = _trusted(keys_files, client_file)
    now = time.time() if at is None else at
    if signature_file is not None:
        judged = _detached(keys, wanted, inputs[0], signature_file, now)
    else:
        lists = RevocationLists.read(list_paths, keys, now)
        judged = _finished(keys, lists, wanted, _lines(inputs) if lines else _files(inputs), now)
    taken = wrong = 0
    for each in judged:
        taken += 1
        wrong += isinstance(each.said, str)
        if as_json:
            print_json(_value(each), indent=None, default=_other, skipkeys=True)
        else:
            say(_text(each))
    if wrong:
        raise OperatorError(f"{wrong} of {count(taken, 'message is', 'messages are')} not valid")
    if not taken:
        raise OperatorError("there is no message to verify")


def _trusted(keys_files: tuple[Path, ...], client_file: Path | None) -> TrustedKeys:
    """Returns the keys of the files, or what the appliance publishes. Raises OperatorError."""
    if keys_files:
        found: list[TrustedKey] = []
        for path in keys_files:
            with explained(path, "read"):
                content = path.read_bytes()
            try:
                found += TrustedKeys.read(content)
            except KeysError as error:
                raise OperatorError(f"{path}: {error}") from None
        return TrustedKeys(found)
    if client_file is None:
        raise click.UsageError("give --keys FILE, or --client FILE to ask the appliance for them")
    from signer.cli.keys.exporting import published

    with connect(client_file) as client:
        versions = published(client.list_key_versions(), announced=True)
    try:
        return TrustedKeys(
            TrustedKey(each.name, each.public_key, Algorithm(each.algorithm), each.certificate)
            for each in versions
        )
    except KeysError as error:
        raise OperatorError(f"the appliance shows this principal no keys: {error}") from None


# --- what is verified -------------------------------------------------------------------------

_Item = tuple[str, int | None, bytes]


def _detached(
    keys: TrustedKeys, wanted: Format | None, name: str, signature_file: Path, now: float
) -> Iterator[_Judged]:
    with explained(signature_file, "read"), click.open_file(name, "rb") as file:
        payload, signature = file.read(), signature_file.read_bytes()
    if wanted in _DIGESTS:
        with suppress(ValueError):
            payload = bytes.fromhex(payload.decode("ascii"))
    tries = [signature]
    with suppress(binascii.Error):
        tries.append(base64.b64decode(signature.strip(), validate=True))
    said: Verified | str = ""
    for each in tries:
        message_format = wanted or detached_format(each) or Format.MESSAGE
        try:
            if message_format is Format.TIMESTAMP:
                said = keys.verify_timestamp(payload, each, now)
            elif message_format in _CMS:
                said = keys.verify_cms(message_format, payload, each, now)
            else:
                said = keys.verify_raw(message_format, payload, each)
            break
        except VerificationError as error:
            said = str(error)
    yield _Judged(_shown(name), None, said)


def _finished(
    keys: TrustedKeys,
    lists: RevocationLists,
    wanted: Format | None,
    items: Iterable[_Item],
    now: float,
) -> Iterator[_Judged]:
    for source, line, content in items:
        said: Verified | str
        try:
            said = keys.verify(content, now)
        except VerificationError as error:
            said = str(error)
        else:
            if wanted not in {None, said.format}:
                said = f"it is genuine, but {said.format} instead of {wanted}"
            elif said.claims is not None:
                said = lists.revoking(content, said.claims) or said
        yield _Judged(source, line, said)


def _files(inputs: Iterable[str]) -> Iterator[_Item]:
    for name in inputs:
        with click.open_file(name, "rb") as file:
            yield _shown(name), None, file.read(_MOST_OF_TEXT)


def _lines(inputs: Iterable[str]) -> Iterator[_Item]:
    """Yields lines: JWS, SHC and HCERT as they are, COSE_Sign1 from Base64."""
    for name in inputs:
        with click.open_file(name, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MOST_OF_TEXT), b""), 1):
                content = line.strip()
                with suppress(binascii.Error):
                    content = base64.b64decode(content, validate=True) or content
                yield _shown(name), number, content


def _shown(name: str) -> str:
    return "stdin" if name == "-" else name


# --- what is printed --------------------------------------------------------------------------


def _text(judged: _Judged) -> str:
    place = judged.source if judged.line is None else f"{judged.source}, line {judged.line}"
    said = judged.said
    if isinstance(said, str):
        return plain(f"{place}: NOT VALID: {said}")
    text = f"{place}: valid {said.format}, {said.algorithm}, {said.key}"
    if said.time is not None:
        text += f", signed at {utc(said.time)}"
    if said.claims is not None:
        claims = said.claims
        text += f", issuer {claims.issuer}, {utc(claims.issued)} to {utc(claims.expires)}"
        if claims.claim is HcertClaim.VHL:
            text += f", a health link to {host_of(claims.content)}"
        elif claims.claim is HcertClaim.DVC:
            text += ", a DVC"
    return plain(text)


def _value(judged: _Judged) -> dict[str, Any]:
    value: dict[str, Any] = {"input": judged.source}
    if judged.line is not None:
        value["line"] = judged.line
    said = judged.said
    if isinstance(said, str):
        return {**value, "valid": False, "error": said}
    value |= {"valid": True, "format": said.format, "algorithm": said.algorithm, "key": said.key}
    if said.claims is not None:
        claims = said.claims
        times = {"issued": utc(claims.issued), "expires": utc(claims.expires)}
        content = claims.content
        if claims.claim is HcertClaim.VHL:  # the key opens the documents behind the link
            content = {name: each for name, each in content.items() if name != "key"}
        return {**value, "issuer": claims.issuer, **times, claims.claim.lower(): content}
    if said.time is not None:
        value["time"] = utc(said.time)
    if said.format not in _RAW | _CMS:
        value["payload"] = _octets(said.payload)
    return value


def _other(value: object) -> str:
    """Returns what JSON has no value for: bytes in Base64, kinds of CBOR by their name."""
    return _octets(value) if isinstance(value, bytes) else str(value)


def _octets(data: bytes) -> str:
    return base64.b64encode(data).decode()
