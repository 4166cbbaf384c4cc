"""Signed lists of revoked certificates, as ``signer verify`` asks them."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from signer.cli.output import explained
from signer.client.verification import TrustedKeys, VerificationError, Verified
from signer.errors import OperatorError
from signer.formats.finished import Claims, finished
from signer.formats.payloads import MessageError
from signer.formats.revocation import RevocationBatch, handles_of_message, read_batch
from signer.model import MESSAGE_BYTES
from signer.text import utc

_SUFFIX = ".p7m"


class _List(NamedTuple):
    path: Path
    signed: Verified
    batch: RevocationBatch


class RevocationLists:
    """Lists whose signatures are of trusted keys, and which have not ended."""

    def __init__(self, lists: list[_List]) -> None:
        self._lists = lists

    @classmethod
    def read(cls, paths: Iterable[Path], keys: TrustedKeys, now: float) -> Self:
        """Reads files, and the lists in folders; raises OperatorError if one is not accepted."""
        lists: list[_List] = []
        for path in paths:
            found = sorted(path.glob(f"*{_SUFFIX}")) if path.is_dir() else [path]
            if not found:
                raise OperatorError(f"{path} has no lists: there is no *{_SUFFIX} in it")
            lists += [_read(each, keys, now) for each in found]
        return cls(lists)

    def revoking(self, text: bytes, claims: Claims) -> str:
        """Returns which list revokes an HCERT that was verified, and since when; "" for none."""
        message = finished(text)
        if not self._lists or message is None:
            return ""
        kid, handles = message.header().kid, handles_of_message(message, claims)
        for each in self._lists:
            if isinstance(kid, bytes) and each.batch.has(claims.issuer, kid, handles):
                at = "" if each.signed.time is None else f" at {utc(each.signed.time)}"
                return f"it is genuine, but revoked: {each.path}, signed{at}, lists it"
        return ""


def _read(path: Path, keys: TrustedKeys, now: float) -> _List:
    with explained(path, "read"), path.open("rb") as file:
        content = file.read(MESSAGE_BYTES)
    try:
        signed = keys.verify_cms_with_content(content, now)
        batch = read_batch(signed.payload)
    except (VerificationError, MessageError) as error:
        raise OperatorError(f"the list {path} is not accepted: {error}") from None
    if now >= batch.expires:
        raise OperatorError(
            f"the list {path} is not accepted: it ended at {utc(batch.expires)}: fetch a new one"
        )
    return _List(path, signed, batch)
