"""Verifies what an appliance signed, offline, with public keys that the caller trusts.

    keys = TrustedKeys.read(Path("trust.json").read_bytes())
    print(keys.verify(Path("certificate.txt").read_bytes(), time.time()).key)

Whether a version was compromised since then, only a new list of keys says.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from signer.algorithms import PROPERTIES, Algorithm
from signer.client.key_files import KeysError, TrustedKey, read_keys
from signer.formats.cms_asn1 import DATA
from signer.formats.cms_reading import CmsParts, read_cms
from signer.formats.finished import (
    JOSE,
    CardClaims,
    Claims,
    Finished,
    SigningHeader,
    card_claims_of,
    claims_of,
    finished,
    finished_hcert,
)
from signer.formats.hcert import PREFIX, read_limits
from signer.formats.payloads import MessageError
from signer.formats.timestamp import is_for_timestamps
from signer.formats.timestamp_reading import detached_format, read_timestamp
from signer.model import Format
from signer.text import utc
from signer.x509 import cose_kid, fits, jwk_thumbprint, spki_of

_SKEW = 300
"""Seconds by which the clock of an issuer may be ahead."""


class VerificationError(ValueError):
    """A message or signature is not valid; it says why."""


class Verified(NamedTuple):
    """A valid message or raw signature: the key that made it, and what was signed.

    ``payload`` is that of the message, without its header, and that of a SMART Health Card
    inflated; ``claims`` only of an HCERT. ``time`` is that of a time-stamp, or
    when a CMS signature was made, as its signer says, in epoch seconds.
    """

    format: Format
    algorithm: Algorithm
    key: str
    payload: bytes
    claims: Claims | None = None
    time: float | None = None


class TrustedKeys:
    """The public keys whose signatures are accepted."""

    def __init__(self, keys: Iterable[TrustedKey]) -> None:
        """Raises KeysError if no key is of a kind that an appliance signs with."""
        given = list(keys)
        self._keys = [key for key in given if any(fits(key.spki, each) for each in Algorithm)]
        if not self._keys:
            kinds = "RSA of 2048 to 4096 bits, P-256, P-384 or Ed25519"
            raise KeysError(f"it has {'no public keys of' if given else 'none of'} {kinds}")

    @classmethod
    def read(cls, content: bytes) -> Self:
        """Reads a file: a JWK Set, a trust list, or certificates and public keys in PEM or DER.

        The first two and certificates are what `signer keys export` writes. Raises KeysError.
        """
        return cls(read_keys(content))

    def __iter__(self) -> Iterator[TrustedKey]:
        return iter(self._keys)

    def verify(self, content: bytes, now: float) -> Verified:
        """Verifies a compact JWS, a SMART Health Card, a COSE_Sign1 or an HCERT's text.

        Of a card also that it is valid at ``now`` (seconds since the epoch). Of an HCERT that
        it was issued and has not expired, and that the certificate of its key covers its times
        and its type. Raises VerificationError.
        """
        message = finished(content)
        if message is None:
            raise VerificationError(_unreadable(content))
        try:
            header = message.header()
            key = self._signer(message, header)
            claims = claims_of(message) if message.format is Format.HCERT else None
            card = card_claims_of(message) if message.format is Format.SHC else None
        except MessageError as error:
            raise VerificationError(str(error)) from None
        if claims is not None:
            _check(claims, key, header.algorithm, now)
        payload = message.payload
        if card is not None:
            _check_card(card, header.algorithm, now)
            payload = card.document
        return Verified(message.format, header.algorithm, key.name, payload, claims)

    def verify_raw(self, message_format: Format, payload: bytes, signature: bytes) -> Verified:
        """Verifies a raw signature of a MESSAGE, or of a DIGEST (then the payload is the digest).

        Raises VerificationError.
        """
        for key in self._keys:
            for algorithm, data in _signed(message_format, payload):
                if key.correct(algorithm, data, signature):
                    return Verified(message_format, algorithm, key.name, payload)
        raise VerificationError("it is not a signature of this message by a key that is trusted")

    def verify_cms(
        self, message_format: Format, payload: bytes, signature: bytes, now: float
    ) -> Verified:
        """Verifies a detached CMS signature of a payload, or of its digest (CMS_DIGEST).

        The certificate that it names must be trusted, or its public key, and have been valid
        when the signature was made. Raises VerificationError.
        """
        try:
            parts = read_cms(signature)
        except MessageError as error:
            raise VerificationError(str(error)) from None
        if parts.content_type != DATA or parts.content is not None:
            raise VerificationError("it contains what it signs, or is not a signature of data")
        key, certificate = self._checked(parts)
        given = message_format is Format.CMS_DIGEST
        if not (parts.digest == payload if given else parts.holds(payload)):
            raise VerificationError(
                f"it is genuine, but of another message: that has another {parts.hash_name} digest"
            )
        _check_signing_time(parts.time, certificate, now)
        return Verified(message_format, parts.algorithm, key.name, payload, time=parts.time)

    def verify_cms_with_content(self, message: bytes, now: float) -> Verified:
        """Verifies a CMS signature that contains what it signs, which is then the payload.

        Its certificate is judged as by ``verify_cms``. Raises VerificationError.
        """
        try:
            parts = read_cms(message)
        except MessageError as error:
            raise VerificationError(str(error)) from None
        if parts.content_type != DATA or parts.content is None:
            raise VerificationError("it does not contain what it signs, or is not one of data")
        key, certificate = self._checked(parts)
        if not parts.holds(parts.content):
            raise VerificationError("its content was changed: the signature is of another one")
        _check_signing_time(parts.time, certificate, now)
        content, time = parts.content, parts.time
        return Verified(Format.CMS, parts.algorithm, key.name, content, time=time)

    def verify_timestamp(self, payload: bytes, answer: bytes, now: float) -> Verified:
        """Verifies a time-stamp of a payload: the answer of an appliance, or the token in it.

        Its certificate must be trusted, or its public key, be for time-stamps alone, and have
        been valid at the time. Raises VerificationError.
        """
        try:
            parts = read_timestamp(answer)
        except MessageError as error:
            raise VerificationError(str(error)) from None
        key, certificate = self._checked(parts.cms)
        if parts.cms.content is None or not parts.cms.holds(parts.cms.content):
            raise VerificationError("its time was changed: the signature is of another TSTInfo")
        if not is_for_timestamps(certificate):
            raise VerificationError(
                f"it is genuine, but the certificate of {key.name} is not for time-stamps alone"
            )
        if hashlib.new(parts.hash_name, payload).digest() != parts.digest:
            raise VerificationError(
                f"it is genuine, but of another message: that has another {parts.hash_name} digest"
            )
        _check_signing_time(parts.time, certificate, now)
        return Verified(Format.TIMESTAMP, parts.cms.algorithm, key.name, payload, time=parts.time)

    def _checked(self, parts: CmsParts) -> tuple[TrustedKey, bytes]:
        """Returns key and certificate of a CMS signature that is correct for its attributes."""
        key, certificate = self._certified(parts)
        name = PROPERTIES[parts.algorithm].hash_name
        data = hashlib.new(name, parts.signed).digest() if name else parts.signed
        if not key.correct(parts.algorithm, data, parts.signature):
            raise VerificationError(
                f"its signature is wrong: its attributes were changed, or it is not by {key.name}"
            )
        return key, certificate

    def _certified(self, parts: CmsParts) -> tuple[TrustedKey, bytes]:
        """Returns the trusted key of the certificate that a CMS signature names, and that."""
        for key in self._keys:
            if key.certificate is not None and parts.names(key.certificate):
                return key, key.certificate
        certificate = parts.certificate()
        if certificate is not None and parts.names(certificate):
            try:
                spki = spki_of(x509.load_der_x509_certificate(certificate).public_key())
            except (ValueError, UnsupportedAlgorithm):
                raise VerificationError("the certificate in it cannot be read") from None
            for key in self._keys:
                if key.certificate is None and key.spki == spki:
                    return key, certificate
        shown = parts.certificate_sha256.hex()
        raise VerificationError(f"no key that is trusted has its certificate (SHA-256 {shown})")

    def _signer(self, message: Finished, header: SigningHeader) -> TrustedKey:
        keys = self._candidates(message.format, header.kid)
        hash_name = PROPERTIES[header.algorithm].hash_name
        data = hashlib.new(hash_name, message.signed).digest() if hash_name else message.signed
        for key in keys:
            if key.correct(header.algorithm, data, message.signature):
                return key
        raise VerificationError(
            f"its signature is wrong: the message was changed, or it is not by {keys[0].name}"
            if len(keys) == 1
            else "its signature is wrong: the message was changed, or no trusted key signed it"
        )

    def _candidates(self, message_format: Format, kid: str | bytes) -> list[TrustedKey]:
        """Returns the keys with the key id of a message, or all that may have it.

        COSE's key id is that of the certificate: of a public key alone it is not known.
        """
        if not kid:
            return self._keys
        named = self._by_kid.get(kid, [])
        if not named and message_format not in JOSE:
            named = [key for key in self._keys if key.certificate is None]
        if not named:
            shown = kid.hex() if isinstance(kid, bytes) else kid[:64]
            raise VerificationError(f'no key that is trusted has its key id "{shown}"')
        return named

    @cached_property
    def _by_kid(self) -> Mapping[str | bytes, list[TrustedKey]]:
        found = defaultdict[str | bytes, list[TrustedKey]](list)
        for key in self._keys:
            ids: set[str | bytes] = {jwk_thumbprint(key.spki), key.kid}
            for kid in ids | {cose_kid(key.spki, key.certificate)}:
                found[kid].append(key)
        return found


def _unreadable(content: bytes) -> str:
    """Says why a content cannot be read as a message: as what it begins, if it is damaged."""
    if kind := detached_format(content):
        return f"it is a {kind}, which does not contain what it signs: give both"
    text = content.strip()
    if text.startswith(PREFIX):
        try:
            finished_hcert(text)
        except MessageError as error:
            return f"it begins as the text of an HCERT, but is damaged or cut: {error}"
    for begin, what, rest in _BEGINNINGS:
        if text.startswith(begin):
            return f"it begins as {what}, but is damaged or cut: the rest is not {rest}"
    return (
        "it is not a compact JWS, a SMART Health Card (shc:/), a COSE_Sign1, the text of an HCERT"
        " (HC1:) or a CMS signature"
    )


_BEGINNINGS = (
    (b"shc:/", "a SMART Health Card", "the digits of a compact JWS"),
    (b"eyJ", "a compact JWS", "three parts of Base64url with dots between them"),
    (b"\xd2\x84", "a tagged COSE_Sign1", "its four parts"),
)


def _signed(message_format: Format, payload: bytes) -> Iterator[tuple[Algorithm, bytes]]:
    """Yields each algorithm with what the HSM would have signed."""
    for algorithm, row in PROPERTIES.items():
        if row.hash_name is None:
            if message_format is Format.MESSAGE:
                yield algorithm, payload
        elif message_format is Format.MESSAGE:
            yield algorithm, hashlib.new(row.hash_name, payload).digest()
        elif len(payload) == hashlib.new(row.hash_name).digest_size:
            yield algorithm, payload


def _check(claims: Claims, key: TrustedKey, algorithm: Algorithm, now: float) -> None:
    """Raises VerificationError if a health certificate is not one that a verifier accepts."""
    if now >= claims.expires:
        raise VerificationError(f"it is genuine, but expired at {utc(claims.expires)}")
    if claims.issued > now + _SKEW:
        raise VerificationError(
            f"it is genuine, but issued at {utc(claims.issued)}, which is in the future"
        )
    if not PROPERTIES[algorithm].hcert:
        raise VerificationError(f"it is genuine, but an HCERT is not signed with {algorithm}")
    if key.certificate is None:
        return
    try:
        not_before, not_after, types = read_limits(key.certificate)
    except ValueError:
        raise VerificationError(f"the certificate of {key.name} cannot be read") from None
    if not not_before <= claims.issued or claims.expires > not_after:
        raise VerificationError(
            f"it is genuine, but its times are not within those of the certificate of {key.name}"
        )
    if claims.type is not None and claims.type not in types:
        raise VerificationError(
            f"it is genuine, but the certificate of {key.name} is not for its type {claims.type}"
        )


def _check_signing_time(at: float | None, certificate: bytes, now: float) -> None:
    """Raises VerificationError if a certificate was not valid when it signed, as the signer says.

    Without such a time it must be valid now.
    """
    if at is not None and at > now + _SKEW:
        raise VerificationError(f"it is genuine, but signed at {utc(at)}, which is in the future")
    read = x509.load_der_x509_certificate(certificate)
    moment = now if at is None else at
    first, last = read.not_valid_before_utc.timestamp(), read.not_valid_after_utc.timestamp()
    if not first <= moment <= last:
        raise VerificationError(
            f"it is genuine, but its certificate was not valid at {utc(moment)}: it is from"
            f" {utc(first)} to {utc(last)}"
        )


def _check_card(claims: CardClaims, algorithm: Algorithm, now: float) -> None:
    """Raises VerificationError if a SMART Health Card is not one that a verifier accepts."""
    if algorithm is not Algorithm.ES256:
        raise VerificationError(
            f"it is genuine, but a SMART Health Card is not signed with {algorithm}"
        )
    if claims.not_before > now + _SKEW:
        raise VerificationError(
            f"it is genuine, but not valid before {utc(claims.not_before)}, which is in the future"
        )
    if claims.expires is not None and now >= claims.expires:
        raise VerificationError(f"it is genuine, but expired at {utc(claims.expires)}")
