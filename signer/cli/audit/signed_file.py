"""Names a signature: by a hash, or by a file with a signature or a finished message."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import cbor2
import click

from signer.cli.options import FILE
from signer.errors import OperatorError
from signer.formats import base45

T = TypeVar("T")

MAX_MESSAGE = 4 << 20
"""Bytes of a message, as in the API, and of a decompressed one."""

_JWS = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.([A-Za-z0-9_-]+)")


def item_options(command: Callable[..., T]) -> Callable[..., T]:
    """Adds ``[SHA256]`` and ``--file``; the command gives both to ``hashes_wanted``."""
    for option in (
        click.option("--file", "file", metavar="FILE", type=FILE, help="A signed message."),
        click.argument("sha256_hex", metavar="[SHA256]", required=False),
    ):
        command = option(command)
    return command


def hashes_wanted(sha256_hex: str | None, file: Path | None) -> frozenset[bytes]:
    """Returns the SHA-256 values under which the log may have the signature or digest.

    Raises UsageError and OperatorError. ``file`` is read up to the bound.
    """
    if (sha256_hex is None) == (file is None):
        raise click.UsageError("give a SHA-256 in hex, or --file FILE")
    if file is not None:
        with file.open("rb") as opened:
            content = opened.read(MAX_MESSAGE + 1)
        if len(content) > MAX_MESSAGE:
            raise OperatorError(f"{file} is longer than {MAX_MESSAGE} bytes: it is not a message")
        return frozenset(sha256(raw).digest() for raw in signatures_in(content))
    try:
        digest = bytes.fromhex(sha256_hex or "")
    except ValueError:
        digest = b""
    if len(digest) != sha256().digest_size:
        raise click.UsageError("SHA256 must have 64 hexadecimal digits")
    return frozenset({digest})


def signatures_in(content: bytes) -> Iterator[bytes]:
    """Yields the raw signature of a file for each form that the file may have.

    The forms are the signature itself, the same in Base64, a compact JWS (RFC 7515
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
            content = _inflate(base45.decode(text[4:]))
    yield from _cose_signature(content)


def _cose_signature(content: bytes) -> Iterator[bytes]:
    with suppress(cbor2.CBORError):
        message = cbor2.loads(content, max_depth=4, allow_indefinite=False)
        match message:
            case cbor2.CBORTag(tag=18, value=[bytes(), _, bytes(), bytes() as signature]):
                yield signature


def _inflate(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, MAX_MESSAGE)
