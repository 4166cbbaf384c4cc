"""HCERT: a health certificate in a CWT in a COSE_Sign1, compressed, in Base45, after ``HC1:``.

What it is about is in ``hcert_claims``: mostly a DCC.

Electronic Health Certificate Specification 1.0, EU DCC trust framework; CWT is
RFC 8392, Base45 RFC 9285.
"""

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

from cryptography import x509

from signer import cbor
from signer.algorithms import PROPERTIES, Algorithm
from signer.errors import CallError, Reason
from signer.format_terms import FormatContext, HcertClaim, HcertTerms, PreparedBatch
from signer.formats import base45, cose, cosigning, dcc, deflate, hcert_claims
from signer.formats.payloads import (
    ContentTerms,
    MessageFormat,
    denied,
    finish_each,
    prepare_each,
    signature_length,
    unreadable,
)
from signer.text import duration

PREFIX = b"HC1:"
QR_CHARACTERS: Mapping[str, int] = {"L": 4296, "M": 3391, "Q": 2420, "H": 1852}
"""Characters that the largest QR code (version 40) holds in alphanumeric mode, by its level of
error correction (ISO/IEC 18004 table 7).
"""
_TEXT_HEAD = 3  # bytes before a text of less than 64 KiB in CBOR
_SPARE = 32  # bytes by which a compressed message may be longer with another signature
_SIGNATURE = hashlib.shake_256(b"").digest(2048)  # random bytes in place of signatures
_ES256 = cose.Envelope({1: PROPERTIES[Algorithm.ES256].cose, 4: _SIGNATURE[:8]})


class Hcert(MessageFormat):
    """A DCC or DVC in JSON or CBOR, or a health link, becomes the text of a QR code."""

    part_bytes = 8 * 1024  # to compress them may take some milliseconds

    def max_output(self, payloads: Sequence[bytes], context: FormatContext) -> int:
        """Bounds the texts; raises CallError if no certificate can be signed.

        An object in CBOR is at most ``_growth`` longer than its payload, a link 3 bytes, the
        zlib stream at most ``deflate.OVERHEAD`` longer than that, and Base45 makes 3 characters
        of 2 bytes.
        """
        claims, _ = _issue(context)
        length = cose.envelope(context.version).length
        signature = signature_length(context.version)
        fixed = length(deflate.MAX_LENGTH, signature) - deflate.MAX_LENGTH
        fixed += len(claims) + deflate.OVERHEAD
        fixed += _TEXT_HEAD if HcertClaim.VHL in context.content.claims else 0
        total = sum(map(len, payloads)) + _growth(payloads) + len(payloads) * fixed
        # A sum of roundings is at most the rounded sum and one for each item.
        return base45.encoded_length(total) + len(payloads) * (1 + len(PREFIX))

    def prepare(self, payloads: Sequence[bytes], context: FormatContext) -> PreparedBatch:
        """Checks the payloads and returns the Sig_structures over their CWTs."""
        _, types = _issue(context)
        terms = ContentTerms(context.content, context.hcert, None, context.now)
        writer = _Writer(
            cose.envelope(context.version), signature_length(context.version), types, terms
        )
        if context.cosigned is None:
            return prepare_each(payloads, writer.prepare)
        cosigned = context.cosigned
        records = iter(cosigned.records[context.first : context.first + len(payloads)])

        def prepare(payload: bytes) -> bytes:
            record = next(records)  # also of a payload that is refused for another reason
            return writer.prepare(payload, partial(cosigning.check, record, cosigned))

        return prepare_each(payloads, prepare)

    def inspect(self, payload: bytes, terms: ContentTerms) -> None:
        """Checks also whether a QR code holds the text, as signed by a key for ES256."""
        if terms.hcert is not None:
            _Writer(_ES256, 64, frozenset(dcc.TYPES), terms).prepare(payload)

    def finish(
        self, prepared: PreparedBatch, signatures: Sequence[bytes], context: FormatContext
    ) -> list[bytes]:
        messages = finish_each(prepared, signatures, cose.envelope(context.version).message)
        made = iter(texts([message for message in messages if message]))
        return [next(made) if message else b"" for message in messages]


class _Writer:
    """Writes the Sig_structures of a batch; holds what its certificates share."""

    def __init__(
        self, envelope: cose.Envelope, signature: int, types: frozenset[str], terms: ContentTerms
    ) -> None:
        self._envelope, self._signature = envelope, signature
        self._types, self._terms = types, terms
        self._content = terms.content
        self._read = hcert_claims.reader(terms.content, dcc.horizon(terms.now))
        # The CWT up to what it is about, of certificates that end as the policy says.
        numbers = [hcert_claims.NUMBERS[claim] for claim in terms.content.claims]
        self._heads = {number: self._head(number) for number in numbers}
        # Sig_structures up to this length fit without compression: almost all.
        self._fits = sys.maxsize
        if terms.content.qr_level is not None:
            room = base45.bytes_within(QR_CHARACTERS[terms.content.qr_level] - len(PREFIX))
            self._fits = room - deflate.OVERHEAD - envelope.message_length(0, signature)

    def prepare(
        self, payload: bytes, also: Callable[[Mapping[str, object]], None] | None = None
    ) -> bytes:
        """Returns the bytes to sign; raises PayloadError, also that of ``also`` for a payload."""
        subject = self._read(payload)
        if also is not None:
            also(subject.document)
        if subject.type is not None and subject.type not in self._types:
            raise denied(
                "certificate.extended_key_usage",
                f"{subject.type} is not among the extended key usages of the signing certificate",
            )
        head = self._heads[subject.number]
        if subject.expires is not None:
            self._check_end(subject.expires)
            head = self._head(subject.number, subject.expires)
        to_sign = self._envelope.to_sign(head + subject.encoded)
        if len(to_sign) > self._fits:
            self._check_text(to_sign)
        return to_sign

    def _head(self, number: int, expires: int | None = None) -> bytes:
        terms = self._terms
        if terms.hcert is None:
            raise _unfit(_NO_TERMS)
        return _claims(terms.hcert, terms.now, number, expires)

    def _check_end(self, expires: int) -> None:
        """Refuses a link whose end is past, or later than that of any certificate of the key."""
        hcert, now = self._terms.hcert, self._terms.now
        if expires <= now:
            raise unreadable("exp is over already", member="exp")
        if hcert is not None and expires > now + hcert.validity:
            most = duration(hcert.validity)
            text = f"exp is later than {most} from now (hcert.validity_days of the policy)"
            raise unreadable(text, member="exp")

    def _check_text(self, to_sign: bytes) -> None:
        """Refuses a text that no QR code of the policy's level holds, before it is signed."""
        level = self._content.qr_level or "L"
        most = QR_CHARACTERS[level]
        # The signature is not known yet: another one makes the stream a few bytes longer.
        message = self._envelope.message(to_sign, _SIGNATURE[: self._signature])
        stream = min(len(deflate.compress(message)) + _SPARE, len(message) + deflate.OVERHEAD)
        length = len(PREFIX) + base45.encoded_length(stream)
        if length > most:
            raise unreadable(
                f"the certificate would have {length} characters, but a QR code of level {level} "
                f"holds {most} (content.qr_level of the policy)",
                rule=self._content.path("qr_level"),
            )


def claims_head(claims: Mapping[int, object], number: int = 1) -> bytes:
    """Returns a CWT up to what it is about: the claims in order, then -260: {number: (RFC 8392)."""
    encoded = [cbor.encode(part, cbor.as_given) for claim in claims.items() for part in claim]
    inner = b"\x39\x01\x03\xa1" + cbor.encode(number, cbor.as_given)
    return cbor.head(5, len(claims) + 1) + b"".join(encoded) + inner


def text(message: bytes) -> bytes:
    """Returns the text of the QR code for a COSE message of at most 65,535 bytes."""
    return texts([message])[0]


def texts(messages: Sequence[bytes]) -> list[bytes]:
    """Returns the texts of several messages; together they take half the time."""
    return [PREFIX + each for each in base45.encode_all(list(map(deflate.compress, messages)))]


def _issue(context: FormatContext) -> tuple[bytes, frozenset[str]]:
    """Returns what a batch shares: a CWT up to a DCC, and the types of DCC that it may have.

    Raises CallError if no certificate can be signed.

    A DCC must not be valid for longer than the certificate that verifies it. An activated
    key version is limited by ``sign_until``, so that the last check passes.
    """
    version, terms, iat = context.version, context.hcert, context.now
    if terms is None:
        raise _unfit(_NO_TERMS)
    if not PROPERTIES[version.algorithm].hcert:
        raise _unfit(f"HCERT is signed with ES256 or PS256, not with {version.algorithm}")
    if version.certificate is None:
        raise _unfit("the key version has no certificate: import one before it signs HCERT")
    try:
        not_before, not_after, types = read_limits(version.certificate)
    except ValueError:
        raise _unfit("the certificate of the key version cannot be read: replace it") from None
    exp = iat + terms.validity
    if iat < not_before:
        raise _unfit("the certificate of the key version is not valid yet")
    if exp > not_after:
        raise _unfit(
            "the certificate of the key version ends before what it would sign: "
            "rotate the key, or shorten the validity in the policy"
        )
    return _claims(terms, iat), types


@lru_cache(maxsize=64)  # of the keys that sign in the same second
def _claims(terms: HcertTerms, iat: int, number: int = 1, expires: int | None = None) -> bytes:
    """Returns iss, exp and iat in their deterministic order, with integer times."""
    exp = iat + terms.validity if expires is None else expires
    return claims_head({1: terms.issuer, 4: exp, 6: iat}, number)


_NO_TERMS = "the policy gives this key no issuer and validity for HCERT"


def _unfit(message: str) -> CallError:
    return CallError(Reason.KEY_VERSION_NOT_ACTIVE, message)


# To e, what follows a digit only in numbers that are not integers; to 0, the digits.
_MARKS = bytes.maketrans(b"123456789.E", b"000000000ee")


def _growth(payloads: Sequence[bytes]) -> int:
    """Returns an upper bound of how much longer DCCs in CBOR are than their payloads together.

    JSON: charge each name and value with the bracket, comma or colon before it.
    - A float has 3 characters and its separator, and takes 9 bytes: 5 more.
    - A text or name of n bytes has two quotes and its separator: n + 3, as many
      as it takes below 64 KiB. Escapes are longer than what they stand for.
    - An integer or word with its separator is never shorter than in CBOR.
    - A list or object is left with one closing bracket and its separator, and
      takes 1 byte, 2 from 24 and 3 from 256 members on (of 2 bytes or more):
      n // 256 bytes more for all. The outermost has no separator, but the quotes
      of ver, nam and dob to spare.
    CBOR: encoding again shortens, except that the two bytes around a list or map
    of indefinite length may become 3 for 256 members or more: n // 256 for all.
    """
    everything = b"".join(payloads)
    floats = everything.translate(_MARKS).count(b"0e")
    return 5 * floats + len(everything) // 256


# Types of DCC that an extended key usage allows. The second arc is a misprint in an early
# version of the specification; certificates in use have it.
DCC_USAGES: Mapping[str, str] = {
    f"{arc}.{number}": kind
    for arc in ("1.3.6.1.4.1.1847.2021.1", "1.3.6.1.4.1.0.1847.2021.1")
    for number, kind in (("1", "t"), ("2", "v"), ("3", "r"))
}

# The extension extKeyUsage with an empty list. RFC 5280 section 4.2.1.12 forbids it and the
# library refuses to read it, but certificates in use have it.
_NO_USAGES = bytes.fromhex("0603551d25 0402 3000")


@lru_cache(maxsize=64)
def read_limits(der: bytes) -> tuple[float, float, frozenset[str]]:
    """Returns a signing certificate's validity in epoch seconds, and the types of DCC it allows.

    Without a usage for DCCs it allows all types. Raises ValueError.
    """
    certificate = x509.load_der_x509_certificate(der)
    oids: list[str] = []
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        oids = [usage.dotted_string for usage in usages.value]
    except x509.ExtensionNotFound:
        pass
    except ValueError:
        if _NO_USAGES not in certificate.tbs_certificate_bytes:
            raise
    types = frozenset(DCC_USAGES[oid] for oid in oids if oid in DCC_USAGES)
    return (
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        types or frozenset(dcc.TYPES),
    )
