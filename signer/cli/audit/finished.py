"""Which signature is meant: a hash, or the raw signature inside a finished message."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import cbor2
import click

from signer.errors import OperatorError

MAX_MESSAGE = 4 << 20
"""Bytes of a message, as in the API, and of what a compressed one may grow to."""

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_BASE45 = {
    character: value
    for value, character in enumerate(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:")
}
_JWS = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.([A-Za-z0-9_-]+)")


def item_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds ``[SHA256]`` and ``--file``; the command gives both to ``hashes_wanted``."""
    for option in (
        click.option("--file", "file", metavar="FILE", type=_FILE, help="A signed message."),
        click.argument("sha256_hex", metavar="[SHA256]", required=False),
    ):
        command = option(command)
    return command


def hashes_wanted(sha256_hex: str | None, file: Path | None) -> frozenset[bytes]:
    """Returns the SHA-256 values by which the log may know what was named.

    Raises UsageError and OperatorError. ``file`` is read up to the bound.
    """
    if (sha256_hex is None) == (file is None):
        raise click.UsageError("give a SHA-256 in hex, or --file FILE")
    if file is not None:
        with file.open("rb") as opened:
            content = opened.read(MAX_MESSAGE + 1)
        if len(content) > MAX_MESSAGE:
            raise OperatorError(f"{file} is longer than {MAX_MESSAGE} bytes: no message of ours is")
        return frozenset(sha256(each).digest() for each in signatures_in(content))
    try:
        digest = bytes.fromhex(sha256_hex or "")
    except ValueError:
        digest = b""
    if len(digest) != sha256().digest_size:
        raise click.UsageError("SHA256 should have 64 hexadecimal digits")
    return frozenset({digest})


def signatures_in(content: bytes) -> Iterator[bytes]:
    """Yields what may be the raw signature of a file: of all forms that the file could have.

    Those are the signature itself, the same in Base64, a compact JWS (RFC 7515
    section 7.1), a COSE_Sign1 (RFC 9052 section 4.2) and an HCERT's text.
    """
    yield content
    text = content.strip()
    with suppress(binascii.Error):
        yield base64.b64decode(text, validate=True)
    if jws := _JWS.fullmatch(text):
        with suppress(binascii.Error):
            yield base64.urlsafe_b64decode(jws[1] + b"=" * (-len(jws[1]) % 4))
    with suppress(ValueError, zlib.error):
        if text.startswith(b"HC1:"):
            content = _inflate(_base45(text[4:]))
    yield from _cose_signature(content)


def _cose_signature(content: bytes) -> Iterator[bytes]:
    with suppress(cbor2.CBORError):
        message = cbor2.loads(content, max_depth=4, allow_indefinite=False)
        match message:
            case cbor2.CBORTag(tag=18, value=[bytes(), _, bytes(), bytes() as signature]):
                yield signature


def _base45(text: bytes) -> bytes:
    """Decodes Base45 (RFC 9285 section 4); raises ValueError."""
    try:
        values = [_BASE45[character] for character in text]
    except KeyError:
        raise ValueError("not Base45") from None
    decoded = bytearray()
    for at in range(0, len(values), 3):
        triple = values[at : at + 3]
        number = sum(value * 45**place for place, value in enumerate(triple))
        try:
            decoded += number.to_bytes(len(triple) - 1, "big")
        except OverflowError:
            raise ValueError("not Base45") from None
    return bytes(decoded)


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_MESSAGE)
