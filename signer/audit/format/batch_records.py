"""Records of signing: what an INTENT, an OUTCOME and an INDETERMINATE hold.

Which items of a batch failed, and for which reason, is a map from each reason to a byte string,
in which bit ``i % 8`` of byte ``i // 8`` (the least significant bit is bit 0) says whether item i
failed for it. Zero bytes at the end are cut off. Version 1 of the log had a map from each index,
in decimal, to ``REASON: message``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from signer.audit.format.record import HASH_SIZE, Fields, RecordError, Value, number, octets, text
from signer.format_terms import HcertTerms
from signer.model import MAX_BATCH_ITEMS

MAX_BITMAP = MAX_BATCH_ITEMS // 8
"""Bytes of a bitmap at most."""


class IntentRecord(NamedTuple):
    """An INTENT: what is about to be signed, for whom, and under which rule.

    Its column holds the digests of the items that go to the HSM. ``payload_hash`` is the
    hash of the whole request, ``asked`` its number of payloads, ``now`` the time in messages
    (seconds since the epoch), ``policy`` a SHA-256. ``failed`` has the items that were
    refused before and their reasons, by their index among the payloads; those of version 1
    have a message, too: ``REASON: message``. ``cosigned`` has the SHA-256 of the facility's signed
    record for each item of the column, where the key demands one.
    """

    principal: str
    request_id: str
    call_id: str
    payload_hash: bytes
    key_version: str
    kid: bytes
    format: str
    rule: str
    policy: bytes
    facility: str
    group: str
    now: int
    hcert: HcertTerms | None
    asked: int
    failed: Mapping[int, str]
    cosigned: bytes = b""

    def to_fields(self) -> dict[str, Value]:
        hcert = self.hcert
        linked: dict[str, Value] = {"cosigned": self.cosigned} if self.cosigned else {}
        return linked | {
            "principal": self.principal,
            "request_id": self.request_id,
            "call_id": self.call_id,
            "payload_hash": self.payload_hash,
            "key_version": self.key_version,
            "kid": self.kid,
            "format": self.format,
            "rule": self.rule,
            "policy": self.policy,
            "facility": self.facility,
            "group": self.group,
            "now": self.now,
            "hcert": None if hcert is None else [hcert.issuer, hcert.validity],
            "asked": self.asked,
            "failed": pack_reasons(self.failed),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "IntentRecord":
        """Reads the fields; those that a proof does not show may be missing."""
        policy = octets(fields, "policy")
        if len(policy) != HASH_SIZE:
            raise RecordError("policy is not a SHA-256")
        hcert = None
        match fields.get("hcert"):
            case [str(issuer), int(validity)]:
                hcert = HcertTerms(issuer, validity)
        return cls(
            principal=text(fields, "principal"),
            request_id=text(fields, "request_id", ""),
            call_id=text(fields, "call_id", ""),
            payload_hash=octets(fields, "payload_hash", b""),
            key_version=text(fields, "key_version"),
            kid=octets(fields, "kid", b""),
            format=text(fields, "format"),
            rule=text(fields, "rule"),
            policy=policy,
            facility=text(fields, "facility", ""),
            group=text(fields, "group", ""),
            now=number(fields, "now", 0),
            hcert=hcert,
            asked=number(fields, "asked", 0),
            failed=reasons(fields, "failed"),
            cosigned=octets(fields, "cosigned", b""),
        )


class OutcomeRecord(NamedTuple):
    """An OUTCOME: what became of an intent.

    Its column holds a signature for each digest of the intent, zeros for those in
    ``failures``, which has their reasons as ``IntentRecord.failed`` does, by their index
    there. ``attempts`` is how often the HSM was asked.
    """

    intent: int
    attempts: int
    failures: Mapping[int, str]

    def to_fields(self) -> dict[str, Value]:
        return {
            "intent": self.intent,
            "attempts": self.attempts,
            "failures": pack_reasons(self.failures),
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> "OutcomeRecord":
        return cls(
            number(fields, "intent"), number(fields, "attempts", 0), reasons(fields, "failures")
        )


def indeterminate(intent: int, reason: str = "") -> dict[str, Value]:
    """Returns the fields of an INDETERMINATE: nothing of the intent is released.

    ``reason`` is empty if a start closes what an earlier process has left open.
    """
    return {"intent": intent, "reason": reason} if reason else {"intent": intent}


def reasons(fields: Fields, name: str) -> dict[int, str]:
    """Returns the reasons of failed items by their index; none if the field is missing.

    Raises RecordError.
    """
    packed = fields.get(name, {})
    if not isinstance(packed, Mapping):
        raise RecordError(f"{name} is not a map")
    try:
        return unpack_reasons(packed)
    except ValueError as error:
        raise RecordError(f"{name} {error}") from None


def pack_reasons(reasons: Mapping[int, str]) -> dict[str, bytes]:
    """Returns the bitmaps of reasons by the index of their item."""
    if not reasons:
        return {}
    size = max(reasons) // 8 + 1
    bitmaps = {reason: bytearray(size) for reason in sorted(set(reasons.values()))}
    for index, reason in reasons.items():
        bitmaps[reason][index >> 3] |= 1 << (index & 7)
    return {reason: bytes(bitmap).rstrip(b"\0") for reason, bitmap in bitmaps.items()}


def unpack_reasons(packed: Mapping[str, object]) -> dict[int, str]:
    """Returns the reasons by the index of their item, of version 1 with their messages.

    Raises ValueError for what neither ``pack_reasons`` nor version 1 has made.
    """
    reasons: dict[int, str] = {}
    for name, value in packed.items():
        match value:
            case str() if name.isdecimal():
                indexes, reason = [int(name)], value
            case bytes() if value.endswith(b"\0") or not 0 < len(value) <= MAX_BITMAP:
                raise ValueError("has a bitmap that is empty or too long")
            case bytes():
                bits = int.from_bytes(value, "little")
                indexes, reason = [i for i in range(bits.bit_length()) if bits >> i & 1], name
            case _:
                raise ValueError("is not a map of reasons")
        if not reasons.keys().isdisjoint(indexes):
            raise ValueError("gives two reasons for one item")
        reasons |= dict.fromkeys(indexes, reason)
    return reasons
