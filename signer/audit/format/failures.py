"""Which items of a batch failed, and for which reason: as records hold it.

A map from each reason to a byte string, in which bit ``i % 8`` of byte ``i // 8`` (the least
significant bit is bit 0) says whether item i failed for it. Zero bytes at the end are cut off.
Version 1 of the log had a map from each index, in decimal, to ``REASON: message``.
"""

from collections.abc import Mapping

from signer.model import MAX_BATCH_ITEMS

MAX_BITMAP = MAX_BATCH_ITEMS // 8
"""Bytes of a bitmap at most."""


def pack(reasons: Mapping[int, str]) -> dict[str, bytes]:
    """Returns the bitmaps of reasons by the index of their item."""
    if not reasons:
        return {}
    size = max(reasons) // 8 + 1
    bitmaps = {reason: bytearray(size) for reason in sorted(set(reasons.values()))}
    for index, reason in reasons.items():
        bitmaps[reason][index >> 3] |= 1 << (index & 7)
    return {reason: bytes(bitmap).rstrip(b"\0") for reason, bitmap in bitmaps.items()}


def unpack(packed: Mapping[str, object]) -> dict[int, str]:
    """Returns the reasons by the index of their item, of version 1 with their messages.

    Raises ValueError for what neither ``pack`` nor version 1 has made.
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
