"""Payload → bytes to sign → finished message: pure, one file a format (DESIGN section 7)."""

from __future__ import annotations

from collections.abc import Mapping

from signer.formats.cose import CoseSign1
from signer.formats.hcert import Hcert
from signer.formats.jws import Jws
from signer.formats.raw import Digest, Message
from signer.formats.signature import signature_length
from signer.model import Format, MessageFormat

__all__ = ["FORMATS", "signature_length"]

FORMATS: Mapping[Format, MessageFormat] = {
    Format.DIGEST: Digest(),
    Format.MESSAGE: Message(),
    Format.JWS: Jws(),
    Format.COSE_SIGN1: CoseSign1(),
    Format.HCERT: Hcert(),
}
"""Every format on offer."""
