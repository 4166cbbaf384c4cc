"""Payload → bytes to sign → finished message: pure, one file a format."""

from collections.abc import Mapping

from signer.formats.cms import Cms, CmsDigest
from signer.formats.cose import CoseSign1
from signer.formats.hcert import Hcert
from signer.formats.jws import Jws
from signer.formats.payloads import MessageFormat
from signer.formats.raw import Digest, Message
from signer.formats.shc import Shc
from signer.formats.timestamp import Timestamp
from signer.model import Format

FORMATS: Mapping[Format, MessageFormat] = {
    Format.DIGEST: Digest(),
    Format.MESSAGE: Message(),
    Format.JWS: Jws(),
    Format.COSE_SIGN1: CoseSign1(),
    Format.HCERT: Hcert(),
    Format.CMS: Cms(),
    Format.TIMESTAMP: Timestamp(),
    Format.SHC: Shc(),
    Format.CMS_DIGEST: CmsDigest(),
}
