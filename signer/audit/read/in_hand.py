"""A message in hand, read from a file, and compared with an item of the log.

The log has the digest of the bytes that were signed, and the signature. A finished message
holds both, so that a genuine signature in a changed message is seen: a compact JWS (RFC 7515
section 7.1), a SMART Health Card, a COSE_Sign1 (RFC 9052 section 4.2), and an HCERT's
text. A CMS signature and a time-stamp hold the digest of their message. A raw signature says
nothing of what it signs, and a message without its signature nothing of who signed it.
"""

import base64
import binascii
import enum
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import new, sha256, sha384
from typing import NamedTuple

from signer.formats.cms_reading import CmsParts, read_cms
from signer.formats.finished import finished
from signer.formats.payloads import MessageError
from signer.formats.timestamp_reading import detached_format, read_timestamp
from signer.model import Format

_DIGEST_SIZES = frozenset({sha256().digest_size, sha384().digest_size})


class Compared(enum.StrEnum):
    """What comparing a message in hand with an item says, the best first."""

    SAME = "same message and signature"
    MESSAGE = "same message, no signature in hand"
    SIGNATURE = "same signature, no message in hand"
    OTHER_MESSAGE = "another message"
    OTHER_SIGNATURE = "another signature"
    NEITHER = "another message and signature"

    @property
    def holds(self) -> bool:
        """Whether nothing in hand differs from what was signed."""
        return self in {Compared.SAME, Compared.MESSAGE, Compared.SIGNATURE}


class InHand(NamedTuple):
    """One way to read a file: its raw signature, and the digests that the log may have of it.

    Without a message there are no digests; without a signature that is None.
    """

    signature: bytes | None
    digests: frozenset[bytes]

    def compare(self, digest: bytes, signature: bytes | None) -> Compared:
        """Compares with the digest and the signature of an item; None: it was not signed."""
        same_message = digest in self.digests
        same_signature = self.signature is not None and self.signature == signature
        if self.signature is None:
            return Compared.MESSAGE if same_message else Compared.NEITHER
        if not self.digests:
            return Compared.SIGNATURE if same_signature else Compared.NEITHER
        match same_message, same_signature:
            case True, True:
                return Compared.SAME
            case True, False:
                return Compared.OTHER_SIGNATURE
            case False, True:
                return Compared.OTHER_MESSAGE
        return Compared.NEITHER


def read_message(content: bytes, signature: bytes | None = None) -> list[InHand]:
    """Returns all ways to read a file.

    With a ``signature`` (raw, CMS or a time-stamp, also in Base64) the file is what it signs: a
    message, or the message of a digest. Without one it is a finished message; else a signature
    or a message alone.
    """
    if signature is not None:
        return [_beside(content, each) for each in _raw(signature)]
    if message := finished(content) or _cms(content):
        return [InHand(message.signature, frozenset({sha256(message.signed).digest()}))]
    alone = [InHand(each, frozenset()) for each in _raw(content)]
    return [*alone, InHand(None, _digests(content))]


def hashes_of(messages: Iterable[InHand]) -> frozenset[bytes]:
    """Returns under what a search finds them: digests, and hashes of signatures."""
    hashes: set[bytes] = set()
    for message in messages:
        hashes |= message.digests
        if message.signature is not None:
            hashes.add(sha256(message.signature).digest())
    return frozenset(hashes)


def compare(messages: Sequence[InHand], digest: bytes, signature: bytes | None) -> Compared:
    """Returns the best that comparing a file with an item says, however the file is read."""
    order = list(Compared)
    said = [message.compare(digest, signature) for message in messages]
    return min(said, key=order.index, default=Compared.NEITHER)


def _beside(content: bytes, signature: bytes) -> InHand:
    """Returns a signature with what it signs; of CMS the log has the attributes it signs."""
    try:
        if detached_format(signature) is Format.TIMESTAMP:
            stamp = read_timestamp(signature)
            message, same = stamp.cms, new(stamp.hash_name, content).digest() == stamp.digest
        else:
            message = read_cms(signature)
            same = message.digest == content or message.holds(content)
    except MessageError:
        return InHand(signature, _digests(content))
    signed = message.signed if same else content
    return InHand(message.signature, frozenset({sha256(signed).digest()}))


def _cms(content: bytes) -> CmsParts | None:
    try:
        if detached_format(content) is Format.TIMESTAMP:
            return read_timestamp(content).cms
        return read_cms(content)
    except MessageError:
        return None


def _digests(message: bytes) -> frozenset[bytes]:
    """Returns what the log has of a message: its hash, or itself where it is a digest."""
    digests = {sha256(message).digest(), sha384(message).digest()}
    return frozenset(digests | ({message} if len(message) in _DIGEST_SIZES else set()))


def _raw(content: bytes) -> list[bytes]:
    signatures = [content]
    with suppress(binascii.Error):
        signatures.append(base64.b64decode(content.strip(), validate=True))
    return signatures
